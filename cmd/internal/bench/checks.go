package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// Names of the checks, as --only selects them: check/NAME/TRANSPORT[/PLACE].
const (
	checkBeside  = "p99-beside-writer"
	checkStopped = "stopped-server"
	checkIdle    = "idle-cpu"
	checkMemory  = "memory"
)

// Limits of the checks. They are promises of the documentation.
const (
	besideLimit  = 3.0   // times the p99 alone
	stoppedLimit = 80.0  // percent of the rate with both servers alive
	idleLimit    = 0.1   // percent of one core
	memoryLimit  = 150.0 // MiB
)

// checkID names a check as rows are named.
func checkID(name, transport, place string) string {
	return strings.TrimSuffix(strings.Join([]string{"check", name, transport, place}, "/"), "/")
}

// checkWanted says whether --only selects a check. Without it --quick has none.
func (b *bench) checkWanted(name, transport, place string) bool {
	if b.opt.only == nil {
		return !b.opt.Quick
	}
	return b.opt.only.MatchString(checkID(name, transport, place))
}

// rawBeside says whether the store's own client is measured beside a writer.
func (b *bench) rawBeside() bool { return b.raw && b.checkWanted(checkBeside, "", "") }

// checksWanted says whether any is.
func (b *bench) checksWanted() bool {
	if b.rawBeside() {
		return true
	}
	for _, t := range b.transports {
		for _, name := range []string{checkBeside, checkStopped, checkIdle, checkMemory} {
			for _, place := range []string{"", result.File, result.Loop} {
				if b.checkWanted(name, t, place) {
					return true
				}
			}
		}
	}
	return false
}

// checkTargets are the targets that checks need, beside those of the rows.
func (b *bench) checkTargets(t *target) bool {
	if t.subject != result.Kvbfs || t.place != result.File && t.place != result.Loop {
		return false
	}
	return b.checkWanted(checkBeside, t.transport, t.place)
}

// checks does those that are wanted.
func (b *bench) checks(ctx context.Context, targets []*target) error {
	add := func(c result.Check, err error) error {
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s: %w", checkID(c.Name, c.Transport, c.Place), err)
		}
		b.report.Checks = append(b.report.Checks, c)
		return nil
	}
	if b.rawBeside() {
		if err := add(b.besideRaw(ctx)); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if t.subject != result.Kvbfs || !b.checkTargets(t) || !b.checkWanted(checkBeside, t.transport, t.place) {
			continue
		}
		if err := add(b.beside(ctx, t)); err != nil {
			return err
		}
	}
	for _, transport := range b.transports {
		if !b.checkWanted(checkIdle, transport, "") {
			continue
		}
		if err := add(b.idle(ctx, transport)); err != nil {
			return err
		}
	}
	for _, transport := range b.transports {
		if !b.checkWanted(checkMemory, transport, "") {
			continue
		}
		if err := add(b.memory(ctx, transport)); err != nil {
			return err
		}
	}
	for _, transport := range b.transports {
		if !b.checkWanted(checkStopped, transport, "") {
			continue
		}
		if _, err := exec.LookPath("memcached"); err != nil {
			b.skip("%s: memcached is not installed, and two servers of our own are needed", checkID(checkStopped, transport, ""))
			continue
		}
		if err := add(b.stopped(ctx, transport)); err != nil {
			return err
		}
	}
	return nil
}

// beside compares the p99 of single reads alone and while somebody writes large
// requests, one after the other, to the other half of the same disk.
func (b *bench) beside(ctx context.Context, t *target) (result.Check, error) {
	c := result.Check{Name: checkBeside, What: "p99 of 4 KiB reads at QD1 beside a writer of 1 MiB, to alone",
		Transport: t.transport, Place: t.place, Unit: "x", Limit: besideLimit}
	half := b.opt.size / 2
	reader := workArgs("reader", t.path, half, b.opt.Seconds, result.Work{Kind: "randread", Block: block4k, Depth: 1, Jobs: 1})
	writer := workArgs("writer", t.path, half, b.opt.Seconds, result.Work{Kind: "write", Block: block1m, Depth: 1, Jobs: 1})
	writer = append(writer, fmt.Sprintf("--offset=%d", half), "--new_group")
	err := b.besidePairs(&c, t.pid, func(with bool) (_ result.Sample, n int64, wrote float64, _ error) {
		args := reader
		if with {
			args = append(append([]string{}, reader...), writer...)
		}
		jobs, err := runFio(ctx, b.place, time.Duration(b.opt.Seconds)*time.Second, fioArgs(args...))
		if err != nil {
			return result.Sample{}, 0, 0, err
		}
		return jobs[0].sample(), jobs[0].ios(), jobs[len(jobs)-1].Write.BW, nil
	})
	return c, err
}

// besideRaw is beside with the store's own client as reader and writer, without
// kvbfs: what the server and the CPUs leave to anybody.
func (b *bench) besideRaw(ctx context.Context) (c result.Check, err error) {
	c = result.Check{Name: checkBeside, What: "p99 of single GETs beside a writer of 16 blocks at a time, to alone, the store's own client", Unit: "x"}
	b.show.step("filling the raw store (%d MiB)", b.opt.size>>20)
	raw, err := openRaw(ctx, b.url, b.opt.size)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, raw.close(context.WithoutCancel(ctx))) }()
	d := time.Duration(b.opt.Seconds) * time.Second
	err = b.besidePairs(&c, 0, func(with bool) (result.Sample, int64, float64, error) {
		if !with {
			s, n, err := raw.measure(ctx, result.Work{Kind: "get", Block: block4k, Depth: 1, Jobs: 1}, d)
			return s, n, 0, err
		}
		return raw.besideWriter(ctx, d)
	})
	return c, err
}

// besidePairs measures alone and with the writer in turn, and makes the check of it.
// What is measured returns a reader's sample, its number of reads, and what the
// writer wrote in bytes per second; pid is the daemon's, or 0.
func (b *bench) besidePairs(c *result.Check, pid int, once func(with bool) (result.Sample, int64, float64, error)) error {
	var samples [2][]result.Sample // alone, beside
	var wrote []float64
	for round := range b.opt.Rounds {
		for i := range samples {
			b.show.step("%s: round %d/%d", checkID(c.Name, c.Transport, c.Place), round+1, b.opt.Rounds)
			s, err := repeat(func() (result.Sample, error) {
				return metered(pid, func() (result.Sample, int64, error) {
					s, n, w, err := once(i == 1)
					if i == 1 && err == nil {
						wrote = append(wrote, w)
					}
					return s, n, err
				})
			})
			if err != nil {
				return err
			}
			samples[i] = append(samples[i], s)
		}
	}
	a, noisyA := result.Settle(samples[0])
	w, noisyW := result.Settle(samples[1])
	c.Noisy = noisyA || noisyW
	c.Parts = []result.Part{{Name: "p99 alone", Value: a.P99US, Unit: "us"}, {Name: "p99 beside the writer", Value: w.P99US, Unit: "us"},
		{Name: "the writer", Value: result.Middle(wrote) / 1e6, Unit: "MB/s"}}
	if a.P99US > 0 {
		c.Value = w.P99US / a.P99US
	}
	return nil
}

// settle is how long a daemon has for what it does after work, before it counts as idle:
// connections that close, memory that goes back.
const settle = 5 * time.Second

// idle measures the CPU time of a daemon of its own, whose only volume is open and has
// been written to.
func (b *bench) idle(ctx context.Context, transport string) (result.Check, error) {
	c := result.Check{Name: checkIdle, What: "CPU time of an idle daemon, of one core", Transport: transport, Unit: "%", Limit: idleLimit}
	pause, span := settle, time.Minute
	if b.opt.Quick {
		pause, span = time.Second, 3*time.Second
	}
	b.show.step("%s: %v", checkID(c.Name, transport, ""), span)
	volume := b.volume(transport, "idle")
	m, err := b.serve(ctx, "idle-"+transport, b.url, transport, map[string]int64{volume: b.opt.size})
	if err != nil {
		return c, err
	}
	hold, err := os.Open(m.image(volume))
	if err != nil {
		return c, err
	}
	defer hold.Close()
	if _, err := runFio(ctx, b.place, fillTime, fioArgs("--name=idle", "--filename="+m.image(volume), "--rw=randwrite", "--bs=4k",
		"--iodepth=32", fmt.Sprintf("--size=%d", b.opt.size), fmt.Sprintf("--io_size=%d", b.opt.size/8&^(block4k-1)))); err != nil {
		return c, err
	}
	if err := sleep(ctx, pause); err != nil {
		return c, err
	}
	before, err := processTime(m.pid)
	if err != nil {
		return c, err
	}
	begin := time.Now()
	if err := sleep(ctx, span); err != nil {
		return c, err
	}
	after, err := processTime(m.pid)
	c.Value = 100 * (after - before).Seconds() / time.Since(begin).Seconds()
	hold.Close()
	return c, errors.Join(err, b.place.Umount(ctx, m.dir))
}

// sleep returns early, with an error, when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// bigVolume is the size of the volume of the memory check.
const bigVolume = 100 << 30

// memory measures a daemon's peak of resident memory while a volume of 100 GiB is
// read and written all over.
func (b *bench) memory(ctx context.Context, transport string) (result.Check, error) {
	c := result.Check{Name: checkMemory, What: "peak of the daemon's memory, a volume of 100 GiB busy", Transport: transport, Unit: "MiB", Limit: memoryLimit}
	b.show.step("%s", checkID(c.Name, transport, ""))
	volume := b.volume(transport, "big")
	m, err := b.serve(ctx, "memory-"+transport, b.url, transport, map[string]int64{volume: bigVolume})
	if err != nil {
		return c, err
	}
	// Half of it writes, each of a block of its own.
	perJob := b.opt.size / 2 / int64(b.cpus) &^ (block4k - 1)
	_, err = runFio(ctx, b.place, fillTime, fioArgs("--name=big", "--filename="+m.image(volume), "--rw=randrw", "--bs=4k",
		"--iodepth=32", fmt.Sprintf("--numjobs=%d", b.cpus), fmt.Sprintf("--size=%d", int64(bigVolume)), fmt.Sprintf("--io_size=%d", perJob), "--group_reporting"))
	if err != nil {
		return c, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid))
	if err != nil {
		return c, err
	}
	peak, err := parseStatus(text, "VmHWM")
	c.Value = float64(peak) / (1 << 20)
	return c, errors.Join(err, b.place.Umount(ctx, m.dir))
}
