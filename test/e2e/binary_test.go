//go:build e2e

package e2e

import (
	"debug/buildinfo"
	"debug/elf"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// maxBinary is how large the program may be: what a small machine still copies and
// starts at once.
const maxBinary = 25 << 20

// TestBinary: what `make build` makes is small, needs no other file to run, and has
// none of the libraries that belong to stores of their own module.
func TestBinary(t *testing.T) {
	rig.Require(t, "make")
	r := rig.New(t, 10*time.Minute) // an empty cache on a loaded machine takes minutes
	bin := r.Path("kvbfs")
	r.Must(rig.Cmd{Args: []string{"make", "-s", "build", "BIN=" + bin}, Dir: rig.ModuleRoot(t), Limit: 9 * time.Minute})
	fi, err := os.Stat(bin)
	must(t, err)
	if fi.Size() >= maxBinary {
		t.Errorf("it has %s, want less than %s", rig.Size(fi.Size()), rig.Size(maxBinary))
	}
	t.Logf("%s", rig.Size(fi.Size()))
	f, err := elf.Open(bin)
	must(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("it is not static")
		}
	}
	info, err := buildinfo.ReadFile(bin)
	must(t, err)
	for _, d := range info.Deps {
		for _, heavy := range []string{"github.com/tikv/", "google.golang.org/grpc"} {
			if strings.HasPrefix(d.Path+"/", heavy) || d.Path == heavy {
				t.Errorf("it has %s", d.Path)
			}
		}
	}
	// Alone: no home, no path.
	if res := r.Do(rig.Cmd{Args: []string{"env", "-i", bin, "version"}}); res.Code != 0 || !strings.HasPrefix(res.Stdout, "kvbfs ") {
		t.Errorf("version: status %d\n%s", res.Code, res.All())
	}
}
