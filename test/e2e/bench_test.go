//go:build e2e

package e2e

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// benchJSON is what the tests look at of `bench --json`.
type benchJSON struct {
	Rows []struct {
		Subject, Transport, Place string
		Work                      struct{ Kind string }
		Median                    struct {
			IOPS   float64 `json:"iops"`
			P50    float64 `json:"p50_us"`
			P99    float64 `json:"p99_us"`
			Daemon float64 `json:"daemon_cpu_us_per_io"`
		}
	}
	Checks []struct {
		Name, Transport string
		Value           float64
	}
	Curves []struct {
		Axis   string
		Points []struct{ Median struct{ IOPS float64 } }
	}
	Skipped []string
}

func runBench(t *testing.T, r *rig.Rig, args ...string) (benchJSON, string) {
	t.Helper()
	file := r.Path("bench.json")
	out := r.Kvbfs(append([]string{"bench", "--quick", "--size", "32M", "--json", file}, args...)...)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b benchJSON
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return b, out
}

// transport is what the rig's mounts would use: make e2e runs everything once by
// default and once over /dev/fuse.
func transport(r *rig.Rig) string { return cmp.Or(r.Transport, "auto") }

// TestBench: the raw store, FUSE alone and kvbfs on file and loop, as a table,
// JSON and a page; nothing is left.
func TestBench(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	r := rig.New(t, 4*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	page := r.Path("bench.html")
	b, out := runBench(t, r, "--transport", transport(r), "--html", page)
	seen := map[string]bool{}
	for _, row := range b.Rows {
		seen[strings.Trim(strings.Join([]string{row.Subject, row.Place, row.Work.Kind}, " "), " ")] = true
		if row.Median.IOPS <= 0 || row.Median.P50 <= 0 || row.Median.P99 < row.Median.P50 {
			t.Errorf("%+v", row)
		}
		if row.Subject == "kvbfs" && row.Median.Daemon <= 0 {
			t.Errorf("no CPU time of the daemon: %+v", row)
		}
	}
	for _, want := range []string{"raw  get", "raw  set", "null file randread", "null loop randwrite", "kvbfs file randread", "kvbfs loop randwrite", "kvbfs loop read"} {
		if !seen[want] {
			t.Errorf("%s was not measured; there is %v", want, seen)
		}
	}
	for _, want := range []string{"efficiency", "The store alone", "One request at a time"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table has no %q:\n%s", want, out)
		}
	}
	if text, err := os.ReadFile(page); err != nil || strings.Count(string(text), "<svg") < 3 || strings.Contains(string(text), "<script") {
		t.Errorf("the page has %d bytes: %v", len(text), err)
	}
	nothingLeft(t, r, tmp)
}

// TestBenchStore: on a store that is not its own, bench leaves nothing either.
func TestBenchStore(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	r := rig.New(t, 4*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	mc := r.Memcached(512)
	b, _ := runBench(t, r, "--transport", transport(r), "--store", mc.URL(), "--only", "^(raw/set-4k-qd32|kvbfs/.*/loop/randwrite)")
	if len(b.Rows) != 3 { // the raw one for itself, and beside the other
		t.Errorf("%d rows, want 3: %+v", len(b.Rows), b.Rows)
	}
	if out := r.Kvbfs("volume", "ls", "--store", mc.URL()); strings.Contains(out, "bench") {
		t.Errorf("volumes are left: %s", out)
	}
	nothingLeftButServer(t, r, mc.PID(), tmp)
	// Deletions are done before the daemon leaves, so blocks are gone: what stays
	// are records and claims.
	if n := mc.Stat("curr_items"); n > 600 {
		t.Errorf("%d items are left on the server", n)
	}
}

// TestBenchRedis: redis-benchmark measures the limit too, on keys of its own, and
// nothing of it is left.
func TestBenchRedis(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "redis-benchmark", "fio")
	r := rig.New(t, 4*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	srv := redistest.Start(t, redistest.TCP())
	before := srv.Client.DBSize(t.Context()).Val()
	b, out := runBench(t, r, "--transport", transport(r), "--store", srv.URL(), "--only", "^(raw/|redis-benchmark/)|file/rand(read|write)-4k-qd32")
	clients := map[string]float64{}
	for _, row := range b.Rows {
		if row.Work.Kind == "get" || row.Work.Kind == "set" {
			clients[row.Subject+" "+row.Work.Kind] = row.Median.IOPS
		}
	}
	for _, want := range []string{"raw get", "raw set", "redis-benchmark get", "redis-benchmark set"} {
		if clients[want] <= 0 {
			t.Errorf("%s was not measured: %v", want, clients)
		}
	}
	if !strings.Contains(out, "redis-benchmark, 4 KiB GET, QD32") || !strings.Contains(out, "efficiency") {
		t.Errorf("the table lacks it:\n%s", out)
	}
	if left, err := srv.Client.Keys(t.Context(), "kvbfs:bench:*").Result(); err != nil || len(left) > 0 {
		t.Errorf("%d keys of redis-benchmark are left, %v", len(left), err)
	}
	if n := srv.Client.DBSize(t.Context()).Val(); n > before+100 {
		t.Errorf("%d keys are left of %d", n, before)
	}
}

// nothingLeftButServer: the server is the test's own.
func nothingLeftButServer(t *testing.T, r *rig.Rig, pid int, tmp string) {
	t.Helper()
	rig.Eventually(t, 30*time.Second, "no process but the server is left, and no loop device", func() bool {
		pids := r.Processes()
		return len(pids) == 1 && pids[0] == pid && len(r.Loops()) == 0
	})
	if files, _ := filepath.Glob(filepath.Join(tmp, "*")); len(files) > 0 {
		t.Errorf("files left behind: %v", files)
	}
}

// TestBenchChecks: the checks run, one server stopped among them, and are within
// reason. Their limits are no matter of a test: machines are noisy.
func TestBenchChecks(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	r := rig.New(t, 4*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	b, _ := runBench(t, r, "--transport", transport(r), "--only", "check/")
	seen := map[string]int{}
	for _, c := range b.Checks {
		seen[c.Name]++
		if c.Value < 0 || c.Name != "idle-cpu" && c.Value == 0 {
			t.Errorf("%+v", c)
		}
	}
	// On the file and on loop, and the store alone.
	if seen["p99-beside-writer"] != 3 || seen["stopped-server"] != 1 || seen["idle-cpu"] != 1 || seen["memory"] != 1 {
		t.Errorf("checks: %v", seen)
	}
	nothingLeft(t, r, tmp)
}

// TestBenchCurves: an axis of the command line, and one of servers of its own.
func TestBenchCurves(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	r := rig.New(t, 4*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	b, _ := runBench(t, r, "--transport", transport(r), "--curves", "--size", "128M", "--only", "curve/(depth|servers)/")
	if len(b.Curves) != 6 { // two works on file and loop, two on file
		t.Errorf("%d curves", len(b.Curves))
	}
	for _, c := range b.Curves {
		for _, p := range c.Points {
			if len(c.Points) != 2 || p.Median.IOPS <= 0 {
				t.Errorf("%+v", c)
			}
		}
	}
	nothingLeft(t, r, tmp)
}

// TestBenchInterrupted: Ctrl-C at any moment leaves nothing.
func TestBenchInterrupted(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	rnd := rig.Rand(t)
	for i := range 4 {
		after := time.Duration(20+rnd.IntN(500+4000*(i%2))) * time.Millisecond
		t.Run(strings.Repeat("I", i+1), func(t *testing.T) {
			r := rig.New(t, 2*time.Minute)
			tmp := r.Mkdir("tmp")
			r.Setenv("TMPDIR", tmp)
			code := interrupted(t, r, after, i > 1, r.Bin, "bench", "--size", "64M")
			t.Logf("interrupted after %v: status %d", after, code)
			if code != 130 {
				t.Errorf("status %d, want 130", code)
			}
			nothingLeft(t, r, tmp)
		})
	}
}

// TestBenchRootless: as nobody, with only /dev/fuse, bench measures the image and
// says what it leaves out.
func TestBenchRootless(t *testing.T) {
	rig.RequireRoot(t) // to become nobody, and for the empty /dev
	rig.RequireFUSE(t)
	rig.Require(t, "unshare", "setpriv", "memcached", "fio")
	r := rig.New(t, 3*time.Minute)
	tmp := nobody(t, r)
	file := filepath.Join(tmp, "bench.json")
	r.Must(rig.Cmd{Dir: tmp, Env: []string{"TMPDIR=" + tmp, "HOME=" + tmp},
		Args: []string{"unshare", "-m", "sh", "-ec", onlyFUSE + `unshare -Urm "$@"`, "sh", r.Bin, "bench", "--quick", "--size", "32M", "--json", file,
			"--only", "raw/get-4k-qd1x1|kvbfs/.*/randread"}})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b benchJSON
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	for _, row := range b.Rows {
		if row.Place != "" && row.Place != "file" || row.Median.IOPS <= 0 {
			t.Errorf("%+v", row)
		}
	}
	if said := strings.Join(b.Skipped, "\n"); len(b.Rows) != 4 || !strings.Contains(said, "loop") || !strings.Contains(said, "io_uring") {
		t.Errorf("%d rows; skipped: %s", len(b.Rows), said)
	}
	if err := os.Remove(file); err != nil {
		t.Error(err)
	}
	nothingLeft(t, r, tmp)
}

// TestBenchWrong: what is wrong is said in one line, with the right status.
func TestBenchWrong(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "memcached", "fio")
	r := rig.New(t, time.Minute)
	for _, c := range []struct {
		status int
		want   string
		args   []string
	}{
		{2, "--size", []string{"--size", "1M"}},
		{2, "--rounds", []string{"--rounds", "0"}},
		{2, "NAME=PATH", []string{"--beside", "x"}},
		{1, "selects nothing", []string{"--only", "nothing-like-that"}},
		{1, "no such file", []string{"--beside", "x=" + r.Path("absent")}},
	} {
		res := r.TryKvbfs(append([]string{"bench"}, c.args...)...)
		if res.Code != c.status || !strings.Contains(res.Stderr, c.want) {
			t.Errorf("%v: status %d: %s", c.args, res.Code, res.Stderr)
		}
		rig.OneLine(t, strings.Join(c.args, " "), res.Stderr)
	}
}
