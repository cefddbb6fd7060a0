package bench

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-6*math.Max(math.Abs(a), math.Abs(b)) }

// TestParseFio reads what fio 3.33 wrote, with a notice before the JSON.
func TestParseFio(t *testing.T) {
	text, err := os.ReadFile("testdata/fio.json")
	if err != nil {
		t.Fatal(err)
	}
	jobs, notices, err := parseFio(append([]byte("fio: a notice with a {brace}\n"), text...))
	if err != nil || len(jobs) != 2 || notices != "fio: a notice with a {brace}" {
		t.Fatalf("%d jobs, notices %q: %v", len(jobs), notices, err)
	}
	mixed, write := jobs[0].sample(), jobs[1].sample()
	if jobs[0].Name != "mixed" || !near(mixed.IOPS, jobs[0].Read.IOPS+jobs[0].Write.IOPS) || mixed.IOPS < 1000 {
		t.Errorf("mixed: %+v", mixed)
	}
	for _, s := range []result.Sample{mixed, write} {
		if s.P50US <= 0 || s.P50US > s.P99US || s.P99US > s.P999US || s.MeanUS <= 0 || s.Bytes <= 0 {
			t.Errorf("latencies out of order: %+v", s)
		}
	}
	if !near(mixed.P50US, jobs[0].Read.Latency.Percent["50.000000"]/1e3) {
		t.Errorf("a mixture's latency is %v and not that of its reads", mixed.P50US)
	}
	if jobs[0].ios() != jobs[0].Read.IOs+jobs[0].Write.IOs || jobs[0].ios() == 0 {
		t.Errorf("%d I/Os", jobs[0].ios())
	}
}

func TestParseFioRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "no results",
		"fio: engine x not loadable": "no results",
		"{\"jobs\": [":               "cannot be read",
		"{\"jobs\": []}":             "no job",
		"a {b} c\n":                  "no results",
	} {
		_, notices, err := parseFio([]byte(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
		if strings.HasPrefix(in, "fio: ") && notices != in {
			t.Errorf("what fio said is lost: %q", notices)
		}
	}
}

// place makes a scratch place and gives the registry's variables back afterwards.
func place(t *testing.T) *scratch.Place {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("KVBFS_STATE_DIR", "")
	t.Setenv("KVBFS_RUNTIME_DIR", "")
	s, err := scratch.New("/nonexistent", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.Sweep(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// needFio skips without it, but not in CI.
func needFio(t *testing.T) {
	t.Helper()
	if _, err := fioVersion(t.Context()); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// TestRunFio: a real run, and an error that names the job and what fio said.
func TestRunFio(t *testing.T) {
	needFio(t)
	s := place(t)
	file := filepath.Join(t.TempDir(), "f")
	args := []string{"fio", "--output-format=json", "--name=small", "--filename=" + file, "--rw=write", "--bs=4k", "--size=64k"}
	jobs, err := runFio(t.Context(), s, time.Second, args)
	if err != nil || len(jobs) != 1 || jobs[0].Name != "small" || jobs[0].ios() != 16 {
		t.Fatalf("%+v: %v", jobs, err)
	}
	_, err = runFio(t.Context(), s, time.Second, []string{"fio", "--output-format=json", "--name=broken", "--filename=" + file + "/nothing", "--rw=read", "--size=4k"})
	if err == nil || !strings.Contains(err.Error(), "fio job broken") || !strings.Contains(err.Error(), "Not a directory") {
		t.Errorf("the error is %v", err)
	}
	_, err = runFio(t.Context(), s, time.Second, []string{"fio", "--output-format=json", "--name=odd", "--no-such-option=1"})
	if err == nil || !strings.Contains(err.Error(), "fio job odd") || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("the error is %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err = runFio(ctx, s, time.Minute, append(args, "--time_based", "--runtime=600"))
	if err != context.Canceled {
		t.Errorf("interrupted: %v", err)
	}
}

// TestWorkArgs: jobs of one sequential work read different parts.
func TestWorkArgs(t *testing.T) {
	args := strings.Join(workArgs("n", "/f", 64<<20, 2, result.Work{Kind: "read", Block: block1m, Depth: 4, Jobs: 3}), " ")
	if !strings.Contains(args, "--offset_increment=22020096") || !strings.Contains(args, "--runtime=2") {
		t.Error(args)
	}
	args = strings.Join(workArgs("n", "/f", 64<<20, 2, result.Work{Kind: "randrw", Block: block4k, Depth: 32, Jobs: 2}), " ")
	if !strings.Contains(args, "--rwmixread=70") || strings.Contains(args, "offset") {
		t.Error(args)
	}
}
