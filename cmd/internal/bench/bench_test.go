package bench

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseStat(t *testing.T) {
	a, err := parseStat([]byte("cpu  100 5 50 800 20 1 4 20 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"))
	if err != nil || a.total != 1000 || a.stolen != 20 || a.busy != 160 {
		t.Fatalf("%+v: %v", a, err)
	}
	b, err := parseStat([]byte("cpu 150 5 50 830 20 1 4 40 7 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := stealPercent(a, b); !near(got, 20) {
		t.Errorf("steal is %v %%, want 20", got)
	}
	if got := stealPercent(a, a); got != 0 {
		t.Errorf("no time passed, and %v %% were stolen", got)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "intr 1 2 3 4 5 6 7 8 9", "cpu a b c d e f g h"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestParseStatus(t *testing.T) {
	text := []byte("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t1024 kB\n")
	if n, err := parseStatus(text, "VmHWM"); n != 2<<20 || err != nil {
		t.Errorf("%d: %v", n, err)
	}
	if _, err := parseStatus(text, "VmSwap"); err == nil {
		t.Error("a line that is not there was read")
	}
}

// TestRepeat: a disturbed run is done again, a few times; the quietest is kept.
func TestRepeat(t *testing.T) {
	run := func(steals ...float64) (kept float64, tries int) {
		s, err := repeat(func() (result.Sample, error) {
			tries++
			return result.Sample{Steal: steals[tries-1]}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return s.Steal, tries
	}
	if kept, tries := run(1); kept != 1 || tries != 1 {
		t.Errorf("a quiet run: kept %v after %d tries", kept, tries)
	}
	if kept, tries := run(9, 0.5); kept != 0.5 || tries != 2 {
		t.Errorf("a quiet second run: kept %v after %d tries", kept, tries)
	}
	if kept, tries := run(9, 4, 6); kept != 4 || tries != maxTries {
		t.Errorf("never quiet: kept %v after %d tries", kept, tries)
	}
	wrong := errors.New("wrong")
	if _, err := repeat(func() (result.Sample, error) { return result.Sample{}, wrong }); err != wrong {
		t.Errorf("%v", err)
	}
}

// planned makes a bench as on a machine with everything.
func planned(t *testing.T, only string, quick bool) *bench {
	t.Helper()
	b := &bench{cpus: 2, raw: true, transports: []string{dev, uring}, places: []string{result.File, result.Loop, result.Ext4, result.XFS},
		peers: []peer{{name: "other", path: "/x"}, {name: "disk", path: "/dev/x", device: true}}, report: &result.Report{}, show: &progress{}}
	b.opt.Quick, b.opt.Only = quick, only
	if only != "" {
		b.opt.only = regexp.MustCompile(only)
	}
	return b
}

func TestPlan(t *testing.T) {
	p, err := planned(t, "", false).plan()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range p.all {
		if id := m.row.ID(); seen[id] {
			t.Errorf("%s is measured twice", id)
		} else {
			seen[id] = true
		}
	}
	for _, id := range []string{"raw/get-4k-qd1x1", "raw/set-run32x2", "gomemcache/get-4k-qd1x16", "null/dev/loop/randwrite-4k-qd32x2",
		"kvbfs/uring/xfs/randrw-4k-qd32x2", "kvbfs/dev/file/read-1m-qd4x1", "other/file/randread-4k-qd1x1", "other/loop/write-128k-qd8x1", "disk/device/randread-4k-qd32x2"} {
		if !seen[id] {
			t.Errorf("%s is missing", id)
		}
	}
	if seen["null/dev/ext4/randread-4k-qd1x1"] {
		t.Error("a file system on a store that keeps nothing")
	}
	for _, id := range []string{"raw/get-4k-qd32x2 beside randrw-4k-qd32x2", "raw/set-4k-qd32x2 beside randrw-4k-qd32x2", "raw/set-4k-qd1x1 beside randwrite-4k-qd1x1",
		"raw/get-run32x2 beside read-1m-qd4x1"} {
		if !seen[id] {
			t.Errorf("%s is missing", id)
		}
	}
	for i, m := range p.all[1:] {
		if before := p.all[i].row; m.row.Subject == result.Null && before.Subject == result.Raw && (before.Beside == nil || *before.Beside != m.row.Work) {
			t.Errorf("%s is measured after %s", m.row.ID(), before.ID())
		}
	}
	// A bound needs the null store's row of each of ours.
	for id := range seen {
		if rest, ok := strings.CutPrefix(id, "kvbfs/"); ok && !strings.Contains(id, "ext4") && !strings.Contains(id, "xfs") && !seen["null/"+rest] {
			t.Errorf("%s has no bound", id)
		}
	}
}

func TestPlanOnly(t *testing.T) {
	p, err := planned(t, "^(null|kvbfs)/dev/loop/randread-4k-qd32x2$", false).plan()
	if err != nil || len(p.all) != 2 || len(p.targets) != 2 {
		t.Fatalf("%d measurements on %d targets: %v", len(p.all), len(p.targets), err)
	}
	p, err = planned(t, "^raw/get|^kvbfs/dev/loop/rand.*qd32x2$", false).plan()
	if err != nil || !slices.ContainsFunc(p.all, func(m measurement) bool { return m.row.ID() == "raw/get-4k-qd32x2 beside randread-4k-qd32x2" }) ||
		slices.ContainsFunc(p.all, func(m measurement) bool { return m.row.Beside != nil && m.row.Beside.Depth == 1 }) {
		t.Errorf("a bound of what is selected, and of nothing else: %v", err)
	}
	p, err = planned(t, "^check/p99-beside-writer/dev/file$", false).plan()
	if err != nil || len(p.all) != 0 || len(p.targets) != 1 {
		t.Errorf("a check alone: %d measurements on %d targets: %v", len(p.all), len(p.targets), err)
	}
	if _, err := planned(t, "no such row", false).plan(); err == nil || !strings.Contains(err.Error(), "selects nothing") {
		t.Errorf("%v", err)
	}
}

// TestDropped: a transport that is not to be had after all takes its rows with it,
// and the report says so.
func TestDropped(t *testing.T) {
	b := planned(t, "", false)
	p, err := b.plan()
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range p.targets {
		if target.transport != uring {
			target.path = "/somewhere"
		}
	}
	b.drop(uring, errNoRing)
	b.drop(uring, errNoRing) // of the other subject
	p.prepared()
	raw := 0
	for _, m := range p.all {
		if m.target == nil {
			raw++
		} else if m.row.Transport == uring {
			t.Fatalf("%s is still measured", m.row.ID())
		}
	}
	if raw == 0 || len(p.all) == raw || len(b.transports) != 1 || len(b.report.Skipped) != 1 {
		t.Errorf("%d measurements, %d of them raw, transports %v, skipped %v", len(p.all), raw, b.transports, b.report.Skipped)
	}
}

// TestChecksWanted: --quick has no checks unless they are named.
func TestChecksWanted(t *testing.T) {
	for _, c := range []struct {
		only  string
		quick bool
		want  bool
	}{{"", false, true}, {"", true, false}, {"check/", true, true}, {"kvbfs/", false, false}} {
		if got := planned(t, c.only, c.quick).checksWanted(); got != c.want {
			t.Errorf("--only %q, quick %v: %v", c.only, c.quick, got)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, opt := range map[string]Options{
		"size":     {Size: "1M", Rounds: 1, Seconds: 1},
		"odd size": {Size: "33554436", Rounds: 1, Seconds: 1},
		"rounds":   {Rounds: 0, Seconds: 1},
		"seconds":  {Rounds: 1, Seconds: 0},
		"regexp":   {Rounds: 1, Seconds: 1, Only: "("},
		"beside":   {Rounds: 1, Seconds: 1, Beside: []string{"x"}},
		"our name": {Rounds: 1, Seconds: 1, Beside: []string{"kvbfs=/x"}},
	} {
		b := &bench{opt: opt}
		if err := b.check(); !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := &bench{opt: Options{Quick: true, Beside: []string{"a=/x=y"}}}
	if err := b.check(); err != nil || b.opt.Rounds != 1 || b.opt.size != 64<<20 || b.peers[0].path != "/x=y" {
		t.Errorf("%+v: %v", b.opt, err)
	}
}

func TestLatencies(t *testing.T) {
	var took []time.Duration
	for i := range 1000 {
		took = append(took, time.Duration(1000-i)*time.Microsecond)
	}
	s := latencies(took)
	if s.P50US != 501 || s.P99US != 991 || s.P999US != 1000 || !near(s.MeanUS, 500.5) {
		t.Errorf("%+v", s)
	}
	if s := latencies(nil); s.P99US != 0 {
		t.Errorf("of nothing: %+v", s)
	}
}
