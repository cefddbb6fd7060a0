package result

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*math.Max(1, math.Abs(b)) }

func TestMiddle(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := Middle(c.v); got != c.want {
			t.Errorf("Middle(%v) = %v, want %v", c.v, got, c.want)
		}
	}
}

// TestSettle: noisy runs do not count while at least half are quiet.
func TestSettle(t *testing.T) {
	quiet := func(iops float64) Sample { return Sample{IOPS: iops, Steal: 1} }
	noisy := func(iops float64) Sample { return Sample{IOPS: iops, Steal: 30} }
	m, n := Settle([]Sample{quiet(10), noisy(1), quiet(20), quiet(30), noisy(2)})
	if m.IOPS != 20 || n {
		t.Errorf("%v, noisy %v", m.IOPS, n)
	}
	m, n = Settle([]Sample{quiet(10), noisy(1), noisy(2)})
	if m.IOPS != 2 || !n {
		t.Errorf("%v, noisy %v", m.IOPS, n)
	}
	if m, n = Settle(nil); m.IOPS != 0 || n {
		t.Errorf("of nothing: %v, noisy %v", m.IOPS, n)
	}
}

func TestWorkNames(t *testing.T) {
	for want, w := range map[string]Work{
		"randread-4k-qd32x2": {Kind: "randread", Block: 4096, Depth: 32, Jobs: 2},
		"write-128k-qd8x1":   {Kind: "write", Block: 128 << 10, Depth: 8, Jobs: 1},
		"read-1m-qd4x1":      {Kind: "read", Block: 1 << 20, Depth: 4, Jobs: 1},
		"get-run32x2":        {Kind: "get", Block: 4096, Depth: 32, Jobs: 2, Run: 32},
		"randread-512-qd1x1": {Kind: "randread", Block: 512, Depth: 1, Jobs: 1},
	} {
		if w.Name() != want {
			t.Errorf("%+v is called %s, want %s", w, w.Name(), want)
		}
	}
	r := Row{Subject: Kvbfs, Transport: "dev", Place: Loop, Work: Work{Kind: "randrw", Block: 4096, Depth: 32, Jobs: 1}}
	if r.ID() != "kvbfs/dev/loop/randrw-4k-qd32x1" {
		t.Error(r.ID())
	}
}

// sample is a report with round figures.
func sample() *Report {
	r := &Report{Made: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Version: "v1",
		Machine:  Machine{Kernel: "Linux 6.18", CPU: "a CPU", CPUs: 2, Fio: "fio-3.33", Memcached: "memcached 1.6.18"},
		Settings: Settings{Rounds: 5, Seconds: 2, Size: 1 << 30, Store: "private memcached"}}
	add := func(subject, transport, place string, w Work, iops float64) {
		us := 1e6 / iops * float64(w.Depth*w.Jobs)
		row := Row{Subject: subject, Transport: transport, Place: place, Work: w}
		row.Samples = []Sample{{IOPS: iops, Bytes: iops * float64(w.Block), MeanUS: us, P50US: us, P99US: 2 * us, P999US: 3 * us, CPUUS: 2e6 / iops, DaemonUS: 1e6 / iops}}
		row.Settle()
		r.Rows = append(r.Rows, row)
	}
	add(Raw, "", "", Work{Kind: "get", Block: 4096, Depth: 1, Jobs: 1}, 40000)
	add(Raw, "", "", Work{Kind: "get", Block: 4096, Depth: 8, Jobs: 2}, 300000)
	add(Raw, "", "", Work{Kind: "get", Block: 4096, Depth: 32, Jobs: 2}, 400000)
	add(Raw, "", "", Work{Kind: "get", Block: 4096, Depth: 32, Jobs: 2, Run: 32}, 320000)
	add(Raw, "", "", Work{Kind: "set", Block: 4096, Depth: 32, Jobs: 2}, 200000)
	add(Gomemcache, "", "", Work{Kind: "get", Block: 4096, Depth: 1, Jobs: 16}, 50000)
	for _, t := range []string{"dev", "uring"} {
		factor := map[string]float64{"dev": 1, "uring": 2}[t]
		add(Null, t, Loop, read1, 20000*factor)
		add(Kvbfs, t, Loop, read1, 10000*factor)
		add(Null, t, Loop, read32, 100000*factor)
		add(Kvbfs, t, Loop, read32, 72000*factor)
		add(Null, t, Loop, mixed, 100000*factor)
		add(Kvbfs, t, Loop, mixed, 50000*factor)
		add(Null, t, Loop, large, 10000*factor)
		add(Kvbfs, t, Loop, large, 2000*factor)
		add(Kvbfs, t, Ext4, read32, 60000*factor)
	}
	add("other", "", Loop, read32, 24000)
	r.Checks = []Check{{Name: "idle-cpu", What: "CPU time of an idle daemon", Transport: "dev", Value: 0.02, Unit: "%", Limit: 0.1}}
	r.Curves = []Curve{{Axis: "depth", Transport: "dev", Place: File, Kind: "randread", Points: []Point{
		{X: 1, Label: "1", Median: Sample{IOPS: 10000, P99US: 150}}, {X: 32, Label: "32", Median: Sample{IOPS: 90000, P99US: 900}}}}}
	return r
}

var (
	read1  = Work{Kind: "randread", Block: 4096, Depth: 1, Jobs: 1}
	read32 = Work{Kind: "randread", Block: 4096, Depth: 32, Jobs: 2}
	mixed  = Work{Kind: "randrw", Block: 4096, Depth: 32, Jobs: 2}
	large  = Work{Kind: "read", Block: 128 << 10, Depth: 8, Jobs: 1}
)

// TestBound: time per I/O is FUSE's plus the store's.
func TestBound(t *testing.T) {
	r := sample()
	for _, c := range []struct {
		place string
		w     Work
		want  float64
	}{
		{Loop, read1, 1 / (1/20000.0 + 1/40000.0)},
		{Loop, read32, 80000}, // 10 us + 2.5 us
		{Loop, mixed, 1 / (1e-5 + 0.7/400000 + 0.3/200000)},
		{Loop, large, 1 / (1e-4 + 32/320000.0)}, // runs, not single blocks
		{Ext4, read32, 80000},                   // of the loop device below it
	} {
		got, ok := r.Bound(Row{Subject: Kvbfs, Transport: "dev", Place: c.place, Work: c.w})
		if !ok || !near(got, c.want) {
			t.Errorf("%s %s: bound %v (%v), want %v", c.place, c.w.Name(), got, ok, c.want)
		}
	}
	if e, ok := r.Efficiency(*r.Find(Kvbfs, "dev", Loop, read32)); !ok || !near(e, 0.9) {
		t.Errorf("efficiency %v, want 0.9", e)
	}
	if _, ok := r.Bound(Row{Subject: Kvbfs, Transport: "dev", Place: File, Work: read32}); ok {
		t.Error("a bound without the null store's row")
	}
	if _, ok := r.Bound(Row{Subject: Kvbfs, Transport: "dev", Place: Loop, Work: Work{Kind: "write", Block: 128 << 10, Depth: 8, Jobs: 1}}); ok {
		t.Error("a bound without the raw store's row")
	}
	if _, ok := r.Efficiency(*r.Find("other", "", Loop, read32)); ok {
		t.Error("a peer has an efficiency")
	}
	if o, ok := r.OfLimit(*r.Find(Kvbfs, "uring", Loop, read32)); !ok || !near(o, 144000.0/400000) {
		t.Errorf("of the store's limit: %v", o)
	}
}

// TestBoundInRounds: what was measured side by side is compared, so that a machine
// that becomes slower between rounds, for all alike, changes no ratio.
func TestBoundInRounds(t *testing.T) {
	r := &Report{Machine: Machine{CPUs: 2}}
	add := func(row Row, iops float64, steal ...float64) {
		for i, speed := range []float64{1, 0.5, 0.8} {
			s := Sample{IOPS: iops * speed}
			if row.Subject == Raw && row.Beside == nil {
				s.IOPS = iops // measured at another time
			}
			if i < len(steal) {
				s.Steal = steal[i]
			}
			row.Samples = append(row.Samples, s)
		}
		row.Settle()
		r.Rows = append(r.Rows, row)
	}
	get := func(depth int) Work { return Work{Kind: "get", Block: 4096, Depth: depth, Jobs: 2} }
	add(Row{Subject: Raw, Work: get(8)}, 500000) // the best shape, by a quarter
	add(Row{Subject: Raw, Work: get(32)}, 400000)
	add(Row{Subject: Raw, Work: get(32), Beside: &read32}, 320000)
	add(Row{Subject: Null, Transport: "dev", Place: Loop, Work: read32}, 100000)
	add(Row{Subject: Kvbfs, Transport: "dev", Place: Loop, Work: read32}, 72000)
	row := *r.Find(Kvbfs, "dev", Loop, read32)
	// 1e5 and 320000*5/4 per second; the middle round has 0.8 of that.
	if b, ok := r.Bound(row); !ok || !near(b, 64000) {
		t.Errorf("bound %v (%v), want 64000", b, ok)
	}
	if e, ok := r.Efficiency(row); !ok || !near(e, 0.9) {
		t.Errorf("efficiency %v (%v), want 0.9", e, ok)
	}
	if o, ok := r.OfLimit(row); !ok || !near(o, 0.18) {
		t.Errorf("share of the limit %v (%v), want 0.18", o, ok)
	}
	if rate, _ := r.RawRate("get", read32); rate != 500000 {
		t.Errorf("limit %v: a row beside another is shown for itself", rate)
	}
	if n := len(r.RawTable().Rows); n != 2 {
		t.Errorf("%d rows of the raw store, want 2", n)
	}
	// A round with stolen time does not count.
	noisy := Row{Subject: Kvbfs, Transport: "dev", Place: Loop, Work: read32}
	r.Rows = r.Rows[:len(r.Rows)-1]
	add(noisy, 72000, 50)
	row = *r.Find(Kvbfs, "dev", Loop, read32)
	if b, ok := r.Bound(row); !ok || !near(b, 52000) { // between 40000 and 64000
		t.Errorf("bound of the quiet rounds %v (%v), want 52000", b, ok)
	}
}

func TestChecks(t *testing.T) {
	if c := (Check{Value: 3, Limit: 3}); !c.Holds() {
		t.Error("at most 3 does not hold for 3")
	}
	if c := (Check{Value: 3.1, Limit: 3}); c.Holds() {
		t.Error("at most 3 holds for 3.1")
	}
	if c := (Check{Value: 79, Limit: 80, AtLeast: true}); c.Holds() {
		t.Error("at least 80 holds for 79")
	}
	r := Report{Checks: []Check{{What: "the floor", Value: 3, Unit: "x"}}}
	if row := r.CheckTable().Rows[0]; row[2] != "-" || row[3] != "-" {
		t.Errorf("a figure without a limit: %q", row)
	}
}

// TestGoals: a goal is shown if its rows are there, and holds or not.
func TestGoals(t *testing.T) {
	r := sample()
	r.Rows = append(r.Rows, Row{Subject: "nbdfuse", Place: Loop, Work: read32, Median: Sample{IOPS: 36000}})
	want := map[string][]string{
		"io_uring / nbdfuse, loop, 4 KiB random read, QD32 x 2":    {"4", "4.00", "yes"},
		"/dev/fuse / nbdfuse, loop, 4 KiB random read, QD32 x 2":   {"2", "2.00", "yes"},
		"efficiency, io_uring, loop, 4 KiB random read, QD1":       {"0.8", "1.00", "yes"},
		"efficiency, io_uring, loop, 4 KiB random read, QD32 x 2":  {"0.85", "1.08", "yes"},
		"efficiency, io_uring, loop, 128 KiB sequential read, QD8": {"0.8", "0.60", "no"},
		"raw client / gomemcache with 16 goroutines, get":          {"6", "8.00", "yes"},
	}
	for _, row := range r.GoalTable().Rows {
		w, ok := want[row[0]]
		if !ok {
			t.Errorf("%v is there without its rows", row)
			continue
		}
		if strings.Join(row[1:], " ") != strings.Join(w, " ") {
			t.Errorf("%v, want %v", row, w)
		}
		delete(want, row[0])
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
}

// TestGolden: tables and the page are what testdata has. KVBFS_GOLDEN=write
// writes them anew.
func TestGolden(t *testing.T) {
	r := sample()
	var text, md strings.Builder
	for _, tb := range r.Tables() {
		text.WriteString(tb.Text() + "\n")
		md.WriteString("## " + tb.Title + "\n\n" + tb.Markdown() + "\n")
	}
	for name, got := range map[string]string{"tables.txt": text.String(), "tables.md": md.String(), "report.html": r.HTML()} {
		path := "testdata/" + name
		if os.Getenv("KVBFS_GOLDEN") == "write" {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs; KVBFS_GOLDEN=write go test writes it, then look at the difference", path)
		}
	}
}

// TestPageIsSelfContained: nothing is loaded from anywhere, and nothing runs.
func TestPageIsSelfContained(t *testing.T) {
	r := sample()
	r.Settings.Store = `<script>alert("x")</script>`
	r.Skipped = []string{"<img src=x>"}
	page := r.HTML()
	for _, bad := range []string{"<script", "<img", "<link", "href=", "url(", "@import"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	if n := strings.Count(page, "<svg"); n < 5 || n != strings.Count(page, "</svg>") {
		t.Errorf("%d plots", n)
	}
}

// TestJSONKeepsAll: a report that was written and read again draws the same.
func TestJSONKeepsAll(t *testing.T) {
	r := sample()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var again Report
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if again.HTML() != r.HTML() {
		t.Error("the page of the report that was read differs")
	}
}

func TestThousands(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1 000", 1234567: "1 234 567"} {
		if got := Thousands(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}
