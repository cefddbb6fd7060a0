package bench

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// TestRedisBenchmark: it reads and overwrites what it stored, over TCP, a socket and
// on a cluster, and takes it away.
func TestRedisBenchmark(t *testing.T) {
	redistest.Binary(t)
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-benchmark is not installed, and CI=true must not skip")
		}
		t.Skip("redis-benchmark is not installed")
	}
	for name, start := range map[string]func(t *testing.T) (url string, keys func() int64){
		"tcp":  func(t *testing.T) (string, func() int64) { return oneRedis(t, redistest.TCP()) },
		"unix": func(t *testing.T) (string, func() int64) { return oneRedis(t) },
		"cluster": func(t *testing.T) (string, func() int64) {
			c := redistest.Cluster(t, 3, 0)
			return c.URL(), func() (n int64) {
				for _, s := range c.Masters() {
					n += s.Client.DBSize(t.Context()).Val()
				}
				return n
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			url, keys := start(t)
			if why := redisBenchmarkFits(url); why != "" {
				t.Fatal(why)
			}
			const size = 8 << 20
			r, err := openRedisBenchmark(t.Context(), place(t), url, size)
			if err != nil {
				t.Fatal(err)
			}
			if n := keys(); n < size/4096*9/10 {
				t.Errorf("%d keys for %d blocks", n, size/4096)
			}
			for _, kind := range []string{"get", "set", "get"} {
				w := result.Work{Kind: kind, Block: block4k, Depth: 32, Jobs: 2}
				s, n, err := r.measure(t.Context(), w, 50*time.Millisecond)
				if err != nil || n < redisCalibration || s.IOPS <= 0 || s.P50US <= 0 || s.P99US < s.P50US {
					t.Errorf("%s: %d operations, %+v: %v", kind, n, s, err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			if _, _, err := r.measure(ctx, result.Work{Kind: "get", Depth: 32, Jobs: 2}, time.Hour); !errors.Is(err, context.Canceled) {
				t.Errorf("interrupted: %v", err)
			}
			if err := r.close(); err != nil {
				t.Error(err)
			}
			if n := keys(); n != 0 {
				t.Errorf("%d keys are left", n)
			}
		})
	}
}

func oneRedis(t *testing.T, opts ...redistest.Option) (string, func() int64) {
	srv := redistest.Start(t, opts...)
	return srv.URL(), func() int64 { return srv.Client.DBSize(t.Context()).Val() }
}

// TestRedisBenchmarkFits: where it cannot measure, the reason is said; a password is
// never its argument.
func TestRedisBenchmarkFits(t *testing.T) {
	for url, want := range map[string]string{
		"redis+sentinel://m@h":      "Sentinels",
		"redis://a,b":               "one server",
		"redis://h:port":            "port",
		"redis+unix:///a,/b":        "one server",
		"rediss://127.0.0.1":        "TLS",
		"redis+cluster://u@a:1,b:2": "password",
	} {
		if why := redisBenchmarkFits(url); !strings.Contains(why, want) {
			t.Errorf("%s: %q, want something of %q", url, why, want)
		}
	}
	t.Setenv("KVBFS_REDIS_PASSWORD", "secret")
	if why := redisBenchmarkFits("redis://h"); !strings.Contains(why, "argument") || strings.Contains(why, "secret") {
		t.Errorf("with a password: %q", why)
	}
}

func TestParseRedisBenchmark(t *testing.T) {
	head := `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"` + "\n"
	s, err := parseRedisBenchmark([]byte(head + `"GET x,""y","120192.30","0.364","0.064","0.271","0.663","3.567","13.519"` + "\n"))
	if err != nil || s.IOPS != 120192.30 || s.MeanUS != 364 || s.P50US != 271 || s.P99US != 3567 {
		t.Errorf("%+v: %v", s, err)
	}
	for _, bad := range []string{"", head, head + `"GET","0.00","0","0","0","0","0","0"`, head + `"GET","nan?","0","0","0","0","0","0"`, `"a`} {
		if s, err := parseRedisBenchmark([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}
