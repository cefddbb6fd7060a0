//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestPeers: the naive file system, go-fuse alone and a loop file are measured in
// one run with kvbfs, and nothing is left.
func TestPeers(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	r := rig.New(t, 10*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	bin, file := r.Build("./test/peers", ""), r.Path("peers.json")
	r.Must(rig.Cmd{Dir: rig.ModuleRoot(t), Limit: 8 * time.Minute /* it builds a peer */, Args: []string{bin, "--kvbfs", r.Bin, "--size", "32M", "--only", "/loop/randread-4k-qd32", "--",
		"--quick", "--transport", transport(r), "--json", file}})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b benchJSON
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	rate := map[string]float64{}
	for _, row := range b.Rows {
		rate[row.Subject] = row.Median.IOPS
	}
	for _, subject := range []string{"kvbfs", "null", "naive", "gofuse-null", "loopfile"} {
		if rate[subject] <= 0 {
			t.Errorf("%s was not measured: %v", subject, rate)
		}
	}
	nothingLeft(t, r, tmp)
}

// TestPeersInterrupted: Ctrl-C at any moment leaves no peer behind.
func TestPeersInterrupted(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "fio")
	rnd := rig.Rand(t)
	for i := range 3 {
		after := time.Duration(50+rnd.IntN(4000)) * time.Millisecond
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			r := rig.New(t, 2*time.Minute)
			tmp := r.Mkdir("tmp")
			r.Setenv("TMPDIR", tmp)
			bin := r.Build("./test/peers", "")
			code := interrupted(t, r, after, false, bin, "--kvbfs", r.Bin, "--size", "32M", "--", "--transport", transport(r))
			t.Logf("interrupted after %v: status %d", after, code)
			if code == 0 {
				t.Error("status 0")
			}
			nothingLeft(t, r, tmp)
		})
	}
}
