package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis"
)

// redisBenchmark is Redis's own load generator, on keys of its own beside kvbfs's:
// what the engine's people measure it with, so nobody need take our client's word
// for the limit of the store. Where it is faster than our client, it is the limit.
type redisBenchmark struct {
	place  *scratch.Place
	args   []string // program and server
	client *goredis.ClusterClient
	single *goredis.Client
	prefix string
	blocks int
	value  string
	rate   map[string]float64 // operations per second of a kind, as measured last
}

const (
	// redisValue is what a block with its trailer takes (docs/format.md).
	redisValue = kvstore.BlockSize + 12
	// redisCalibration is how many operations find out how many fit in a run:
	// redis-benchmark is told a number, not a time.
	redisCalibration = 20_000
	// redisGrace is how much longer than planned a run may take. A server that is gone
	// makes redis-benchmark try for ever.
	redisGrace = 30 * time.Second
)

// redisBenchmarkFits says why redis-benchmark cannot measure a store; empty if it can.
func redisBenchmarkFits(url string) string {
	loc, err := redis.ParseURL(url)
	if err != nil {
		return err.Error()
	}
	if err := loc.Secrets(); err != nil {
		return err.Error()
	}
	switch {
	case loc.Mode == redis.Sentinel:
		return "it does not ask Sentinels"
	case loc.Mode == redis.Direct && len(loc.Servers) > 1:
		return "it knows one server"
	case loc.Password != "":
		return "it takes passwords as an argument, which everybody on the machine can read"
	case loc.TLS != nil:
		return "with TLS it is not run"
	}
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		return "it is not installed (Debian: redis-tools)"
	}
	return ""
}

// openRedisBenchmark stores as many values as a volume has blocks.
func openRedisBenchmark(ctx context.Context, place *scratch.Place, url string, bytes int64) (*redisBenchmark, error) {
	loc, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	r := &redisBenchmark{place: place, blocks: int(bytes / kvstore.BlockSize), rate: map[string]float64{},
		prefix: fmt.Sprintf("kvbfs:bench:%08x:", rand.Uint32())}
	// Printable, as it is an argument; random, as a block's data is.
	value := make([]byte, redisValue)
	for i := range value {
		value[i] = byte('0' + rand.IntN(75))
	}
	r.value = string(value)
	addr := loc.Servers[0]
	if strings.HasPrefix(addr, "/") {
		r.args = []string{"redis-benchmark", "-s", addr}
		r.single = goredis.NewClient(&goredis.Options{Network: "unix", Addr: addr, DB: loc.DB, Protocol: 2, DisableIdentity: true})
	} else {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		r.args = []string{"redis-benchmark", "-h", host, "-p", port}
		if loc.Mode == redis.Cluster {
			// It fills in a tag of each node's own slots, so that node gets the command.
			r.args = append(r.args, "--cluster")
			r.prefix += "{tag}:"
			r.client = goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: loc.Servers, Protocol: 2, DisableIdentity: true})
		} else {
			r.single = goredis.NewClient(&goredis.Options{Addr: addr, DB: loc.DB, Protocol: 2, DisableIdentity: true})
		}
	}
	if loc.DB != 0 {
		r.args = append(r.args, "--dbnum", strconv.Itoa(loc.DB))
	}
	return r, r.fill(ctx)
}

// fill stores all values. Which tags it uses on a cluster only redis-benchmark
// knows, so there it does it itself, at random, until hardly a key is missing.
func (r *redisBenchmark) fill(ctx context.Context) error {
	if r.client != nil {
		// After n draws of n keys 1/e are missing, after 6 n 0.25 %.
		_, _, err := r.run(ctx, "set", 8, 2, 6*r.blocks, time.Minute)
		return err
	}
	for n := 0; n < r.blocks && ctx.Err() == nil; {
		pipe := r.single.Pipeline()
		for range 256 {
			// As redis-benchmark spells a random number.
			pipe.Set(ctx, fmt.Sprintf("%s%012d", r.prefix, n), r.value, 0)
			if n++; n == r.blocks {
				break
			}
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// close removes what it stored. It is bounded in time.
func (r *redisBenchmark) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r.client == nil {
		return errors.Join(r.remove(ctx, r.single), r.single.Close())
	}
	return errors.Join(r.client.ForEachMaster(ctx, r.remove), r.client.Close())
}

// remove takes the values off one server.
func (r *redisBenchmark) remove(ctx context.Context, c *goredis.Client) error {
	pattern := strings.ReplaceAll(r.prefix, "{tag}", "{*}") + "*"
	for cursor := uint64(0); ; {
		keys, next, err := c.Scan(ctx, cursor, pattern, 1000).Result()
		if err != nil {
			return err
		}
		pipe := c.Pipeline()
		for _, k := range keys {
			pipe.Unlink(ctx, k) // one by one: on a cluster they are in many slots
		}
		if len(keys) > 0 {
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// measure does a work for about as long as d. Its latencies are those of a batch.
func (r *redisBenchmark) measure(ctx context.Context, w result.Work, d time.Duration) (result.Sample, int64, error) {
	if r.rate[w.Kind] == 0 {
		s, _, err := r.run(ctx, w.Kind, w.Depth, w.Jobs, redisCalibration, d)
		if err != nil {
			return s, 0, err
		}
		r.rate[w.Kind] = s.IOPS
	}
	s, n, err := r.run(ctx, w.Kind, w.Depth, w.Jobs, max(redisCalibration, int(r.rate[w.Kind]*d.Seconds())), d)
	if err == nil {
		r.rate[w.Kind] = s.IOPS
	}
	return s, n, err
}

// run does n operations over so many connections, depth at a time on each.
func (r *redisBenchmark) run(ctx context.Context, kind string, depth, conns, n int, planned time.Duration) (result.Sample, int64, error) {
	limited, cancel := context.WithTimeout(ctx, planned+redisGrace)
	defer cancel()
	args := slices.Concat(r.args, []string{"-c", strconv.Itoa(conns), "-P", strconv.Itoa(depth), "-n", strconv.Itoa(n), "-r", strconv.Itoa(r.blocks), "--csv",
		strings.ToUpper(kind), r.prefix + "__rand_int__"})
	if kind == "set" {
		args = append(args, r.value)
	}
	cmd := r.place.Command(limited, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return result.Sample{}, 0, ctx.Err()
	case limited.Err() != nil:
		return result.Sample{}, 0, fmt.Errorf("redis-benchmark, %s: not done after %v: %s", kind, planned+redisGrace, firstLine(errs.String()))
	case err != nil:
		return result.Sample{}, 0, fmt.Errorf("redis-benchmark, %s: %w: %s", kind, err, firstLine(errs.String(), out.String()))
	}
	s, err := parseRedisBenchmark(out.Bytes())
	if err != nil {
		return s, 0, fmt.Errorf("redis-benchmark, %s: %w: %s", kind, err, firstLine(errs.String()))
	}
	return s, int64(n), nil
}

// parseRedisBenchmark reads the CSV of one command: rps, then mean, least, p50, p95,
// p99 and greatest latency in ms.
func parseRedisBenchmark(text []byte) (result.Sample, error) {
	in := csv.NewReader(bytes.NewReader(text))
	in.FieldsPerRecord = -1
	lines, err := in.ReadAll()
	if err != nil {
		return result.Sample{}, err
	}
	for _, line := range lines {
		if len(line) != 8 || line[1] == "rps" {
			continue
		}
		var f [8]float64
		for i := 1; i < len(f); i++ {
			if f[i], err = strconv.ParseFloat(line[i], 64); err != nil {
				return result.Sample{}, err
			}
		}
		if f[1] <= 0 {
			return result.Sample{}, errors.New("it did nothing")
		}
		return result.Sample{IOPS: f[1], Bytes: f[1] * kvstore.BlockSize, MeanUS: f[2] * 1e3, P50US: f[4] * 1e3, P99US: f[6] * 1e3}, nil
	}
	return result.Sample{}, errors.New("its output has no line with a rate")
}
