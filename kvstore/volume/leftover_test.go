package volume

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// TestReadBesideReadersAfterCrash: a daemon was killed, another machine took the
// volume over, and readers share it since. What the crash left here is of no use,
// so this machine reads with them.
func TestReadBesideReadersAfterCrash(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind)
			r.set.opt.Lease.TTL = 60 * time.Millisecond
			r.create("v", 1<<20)
			v := r.open("v")
			r.write(v, 0, pattern(4096, 1))
			left := statePath(r.set.opt.RuntimeDir, v.uuid)
			r.crash()
			other := r.machine(Options{})
			theirs, err := other.Open(ctx, "v", false) // takes over first
			must(t, err)
			if _, err := os.Lstat(left); err != nil {
				t.Fatal("the crash left nothing", err)
			}
			mine, err := r.set.Open(ctx, "v", false)
			must(t, err)
			for s, v := range map[*Set]*Volume{r.set: mine, other: theirs} {
				got, err := readOn(s, v, 0, 4096)
				if err != nil || kind == "file" && !bytes.Equal(got, pattern(4096, 1)) {
					t.Fatal(err)
				}
			}
			if _, err := os.Lstat(left); err == nil {
				t.Error("what is of no use stays")
			}
			must(t, mine.Close(ctx))
			must(t, theirs.Close(ctx))
		})
	}
}

// TestReadAfterRefusedWrite: who may not write because somebody reads may read.
func TestReadAfterRefusedWrite(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<20)
	other := r.machine(Options{})
	theirs, err := other.Open(ctx, "v", false)
	must(t, err)
	if _, err := r.set.Open(ctx, "v", true); !errors.Is(err, pool.ErrHeld) {
		t.Fatal(err)
	}
	mine, err := r.set.Open(ctx, "v", false)
	must(t, err)
	must(t, mine.Close(ctx))
	must(t, theirs.Close(ctx))
}
