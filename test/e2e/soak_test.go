//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// footprint is what a daemon holds while nobody asks anything of it.
type footprint struct {
	rss                              int64 // KiB
	goroutines, descriptors, threads int64
}

var (
	dumped = regexp.MustCompile(`(\d+) goroutines, (\d+) descriptors`)
	held   = regexp.MustCompile(`(?m)^(VmRSS|Threads):\s+(\d+)`)
)

// look has the daemon tell what it holds.
func look(t *testing.T, r *rig.Rig, m *rig.Mount) (f footprint) {
	t.Helper()
	dumps := func() (all [][][]byte) {
		logs, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.log"))
		for _, name := range logs {
			text, _ := os.ReadFile(name)
			all = append(all, dumped.FindAllSubmatch(text, -1)...)
		}
		return all
	}
	number := func(b []byte) int64 {
		n, err := strconv.ParseInt(string(b), 10, 64)
		must(t, err)
		return n
	}
	before := len(dumps())
	must(t, syscall.Kill(m.PID(), syscall.SIGQUIT))
	rig.Eventually(t, 30*time.Second, "the log has another dump", func() bool { return len(dumps()) > before })
	last := dumps()[before]
	f.goroutines, f.descriptors = number(last[1]), number(last[2])
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
	must(t, err)
	for _, line := range held.FindAllSubmatch(status, -1) {
		if bytes.Equal(line[1], []byte("VmRSS")) {
			f.rss = number(line[2])
		} else {
			f.threads = number(line[2])
		}
	}
	return f
}

// drift compares what was held in the second quarter of a run with its last quarter,
// as medians: by how many parts of the former the latter is more.
func drift(all []footprint, of func(footprint) int64) (from, to int64, by float64) {
	median := func(part []footprint) int64 {
		var v []int64
		for _, f := range part {
			v = append(v, of(f))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	n := len(all)
	from, to = median(all[n/4:(n+1)/2]), median(all[n*3/4:])
	return from, to, float64(to-from) / float64(from)
}

// TestSoak does everything again and again to one daemon: what fio writes is verified on
// a loop device over a line that is cut, the server is stopped, devices, volumes and
// file systems come and go. What the daemon holds between the rounds must stay what it
// was. KVBFS_SOAK is for how long (30m); without it there are a few rounds, too few to
// compare memory.
func TestSoak(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "fio", "mkfs.ext4")
	var length time.Duration
	if s := os.Getenv("KVBFS_SOAK"); s != "" {
		var err error
		length, err = time.ParseDuration(s)
		must(t, err)
	}
	r := rig.New(t, 10*time.Minute+2*length)
	srv := r.MemcachedTCP(768)
	seed := rig.Seed(t)
	wire := rig.NewChaos(t, srv.Addr, rig.Line{ResetIn: 16 << 20, Delay: 100 * time.Microsecond}, seed)
	wire.Calm()
	r.Create(srv.URL(), "v", "256M")
	m := r.Mount(wire.URL())
	dev := m.Attach("v")

	var all []footprint
	begin := time.Now()
	for i := 0; i < 4 || time.Since(begin) < length; i++ {
		soakRound(t, r, m, wire, srv, dev, seed>>1+uint64(i))
		if t.Failed() {
			return
		}
		time.Sleep(2 * time.Second) // connections are closed, and made anew
		all = append(all, look(t, r, m))
		t.Logf("after %v: %+v", time.Since(begin).Round(time.Second), all[len(all)-1])
	}
	if wire.Faults() == 0 {
		t.Error("no connection was cut")
	}
	for _, c := range []struct {
		what  string
		of    func(footprint) int64
		slack int64 // what may come and go: one worker's more or less
	}{
		{"goroutines", func(f footprint) int64 { return f.goroutines }, 4},
		{"descriptors", func(f footprint) int64 { return f.descriptors }, 4},
		{"threads", func(f footprint) int64 { return f.threads }, 4},
		{"KiB of memory", func(f footprint) int64 { return f.rss }, 4 << 10}, // where the collector stands
	} {
		from, to, by := drift(all, c.of)
		t.Logf("%s: from %d to %d in %d rounds, %+.1f %%; %d connections cut", c.what, from, to, len(all), 100*by, wire.Faults())
		if c.what == "KiB of memory" && length < 5*time.Minute {
			continue // the collector has not come to rest
		}
		if by > 0.05 && to-from > c.slack {
			t.Errorf("%s grew from %d to %d", c.what, from, to)
		}
	}
	if _, most, _ := drift(all, func(f footprint) int64 { return f.rss }); most > 150<<10 {
		t.Errorf("%d KiB of memory", most)
	}
	r.Detach(dev)
	m.Umount()
}

// soakRound is one round of TestSoak.
func soakRound(t *testing.T, r *rig.Rig, m *rig.Mount, wire *rig.Chaos, srv *rig.Memcached, dev string, seed uint64) {
	wire.Rage()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		time.Sleep(300 * time.Millisecond)
		srv.Freeze()
		time.Sleep(200 * time.Millisecond)
		srv.Continue()
	}()
	r.Must(rig.Cmd{Args: []string{"fio", "--minimal", fmt.Sprintf("--randseed=%d", seed),
		filepath.Join(rig.ModuleRoot(t), "test", "fio", "verify-device.fio")},
		Dir: r.Dir, Env: []string{"TARGET=" + dev}, Limit: 5 * time.Minute})
	<-stopped
	wire.Calm() // an attach that cannot ask its server fails, and says so
	r.Create(wire.URL(), "w", "64M")
	other := m.Attach("w")
	r.Mkfs("ext4", other)
	dir := r.MountFS(other, "ext4")
	r.Run("cp", "-r", filepath.Join(rig.ModuleRoot(t), "docs"), dir)
	r.UmountFS(dir)
	r.Detach(other)
	r.Kvbfs("volume", "rm", "w", "--yes", "--store", wire.URL())
	r.Run("blkdiscard", "-o", "0", "-l", "64M", dev)
}
