//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestWhere runs the command that `volume where` prints: it gives the very bytes
// of the block, with no kvbfs involved.
func TestWhere(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "socat", "sh")
	everyStore(t, time.Minute, 128, whereFetches)
	t.Run("tcp", func(t *testing.T) {
		r := rig.New(t, time.Minute)
		whereFetches(t, r, r.MemcachedTCP(128).URL())
	})
}

func whereFetches(t *testing.T, r *rig.Rig, store string) {
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 40, 3)
	f.Close()
	m.Umount()
	want := make([]byte, rig.BlockSize)
	for _, block := range []int64{0, 17, 39} {
		rig.Stamp(want, block, 3)
		p := r.Where(store, "v", block*rig.BlockSize+123)
		if !p.Present || !p.Stored || p.Command == "" || strings.Contains(p.Command, "\n") {
			t.Fatalf("where %d: %+v", block, p)
		}
		command := p.Command
		if strings.HasSuffix(command, "| xxd") {
			rig.Require(t, "xxd")
			command += " | xxd -r"
		}
		res := r.Must(rig.Cmd{Args: []string{"sh", "-c", command}})
		if !bytes.Contains([]byte(res.Stdout), want) {
			t.Errorf("%s\nprints %d bytes without those of block %d: %.80q", p.Command, len(res.Stdout), block, res.Stdout)
		}
		if text := r.Kvbfs("volume", "where", "v", fmt.Sprint(block*rig.BlockSize), "--store", store); !strings.Contains(text, p.Command) {
			t.Errorf("where does not print the command:\n%s", text)
		}
	}
	if p := r.Where(store, "v", 41*rig.BlockSize); p.Present || p.Stored {
		t.Errorf("a hole: %+v", p)
	}
}

// TestRemoveInMount: rm of an image removes the volume only where the mount
// allows it.
func TestRemoveInMount(t *testing.T) {
	rig.RequireFUSE(t)
	eachStore(t, time.Minute, 128, func(t *testing.T, r *rig.Rig, store string) {
		m := r.Mount(store)
		r.Run("truncate", "-s", "16M", m.Image("v")) // makes it
		f := rig.Direct(t, m.Image("v"))
		fill(t, f, 64, 1)
		f.Close()
		res := r.Try("rm", "-f", m.Image("v"))
		if res.Code == 0 {
			t.Error("rm removed a volume that it may not remove")
		}
		if !strings.Contains(res.Stderr, "not permitted") && !strings.Contains(res.Stderr, "denied") {
			t.Errorf("rm says %q", res.Stderr)
		}
		if err := os.Rename(m.Image("v"), m.Image("w")); err == nil {
			t.Error("a volume was renamed")
		}
		if err := os.WriteFile(m.Image("x/y"), nil, 0o600); err == nil {
			t.Error("a file below a volume")
		}
		if _, err := os.Stat(m.Image("v")); err != nil {
			t.Error(err)
		}
		m.Umount()

		m.Mount(store, "--allow-remove")
		r.Run("rm", m.Image("v"))
		if _, err := os.Stat(m.Image("v")); !errors.Is(err, unix.ENOENT) {
			t.Errorf("after rm: %v", err)
		}
		rig.Eventually(t, 10*time.Second, "the volume is off the list", func() bool {
			return !strings.Contains(r.Kvbfs("volume", "ls", "--store", store), "v ")
		})
		m.Umount()
		if out := r.Kvbfs("volume", "ls", "--json", "--store", store); strings.TrimSpace(out) != "[]" {
			t.Errorf("volumes after rm: %s", out)
		}
	})
}

// TestAppear: volumes that another command makes or removes meanwhile come and
// go in the mount, and .stats can be read and not written.
func TestAppear(t *testing.T) {
	rig.RequireFUSE(t)
	eachStore(t, time.Minute, 128, func(t *testing.T, r *rig.Rig, store string) {
		m := r.Mount(store)
		r.Create(store, "late", "16M")
		rig.Eventually(t, 10*time.Second, "the new volume appears", func() bool {
			fi, err := os.Stat(m.Image("late"))
			return err == nil && fi.Size() == 16<<20
		})
		names, err := os.ReadDir(m.Dir)
		if err != nil || len(names) == 0 {
			t.Errorf("readdir: %v, %v", names, err)
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(m.Dir, &st); err != nil {
			t.Fatal(err)
		}
		all, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
		t.Logf("the pool has %s, %s of it free", rig.Size(all), rig.Size(free))
		if st.Bsize != rig.BlockSize || free <= 0 || free > all {
			t.Errorf("statfs: %+v", st)
		}
		if strings.HasPrefix(store, "memcached") && (all < 96<<20 || all > 128<<20) {
			t.Errorf("a memcached of 128 MiB is shown with %s", rig.Size(all))
		}
		stats, err := os.ReadFile(m.Image(".stats"))
		if err != nil || len(stats) == 0 {
			t.Errorf(".stats: %q, %v", stats, err)
		}
		flushes := func() int64 {
			var s struct {
				Operations map[string]struct{ Requests int64 }
			}
			b, err := os.ReadFile(m.Image(".stats"))
			if err != nil || json.Unmarshal(b, &s) != nil {
				t.Fatalf(".stats: %q, %v", b, err)
			}
			return s.Operations["flush"].Requests
		}
		f := rig.Direct(t, m.Image("late"))
		before := flushes()
		if err := f.Sync(); err != nil || flushes() != before+1 {
			t.Errorf("after an fsync (%v) .stats counts %d flushes, %d before", err, flushes(), before)
		}
		f.Close()
		if err := os.WriteFile(m.Image(".stats"), []byte("x"), 0o600); err == nil {
			t.Error(".stats was written")
		}
		r.Kvbfs("volume", "rm", "late", "--yes", "--store", store)
		rig.Eventually(t, 10*time.Second, "the removed volume disappears", func() bool {
			_, err := os.Stat(m.Image("late"))
			return errors.Is(err, unix.ENOENT)
		})
		m.Umount()
	})
}
