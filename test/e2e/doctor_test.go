//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestDangerousServer: doctor names each setting by which a memcached could lose
// data, with its fix and the right start line; a mount refuses such a server
// unless told to take it.
func TestDangerousServer(t *testing.T) {
	rig.RequireFUSE(t)
	const slabs = "slab_sizes=96-192-4176-4240-8352"
	for _, c := range []struct {
		name    string
		words   []string // what doctor says about it
		args    []string
		refused bool
	}{
		{"evictions", []string{"evict", "-M"}, []string{"-F", "-o", slabs + ",slab_automove=0"}, true},
		{"automove", []string{"slab_automove"}, []string{"-M", "-F", "-o", slabs + ",slab_automove=1"}, true},
		{"extstore", []string{"extstore"}, []string{"-M", "-F", "-o", slabs + ",slab_automove=0,ext_path=EXT:64m"}, true},
		{"item size", []string{"item"}, []string{"-M", "-F", "-I", "2k", "-o", "slab_automove=0,slab_chunk_max=1"}, true},
		{"flush_all", []string{"flush_all", "-F"}, []string{"-M", "-o", slabs + ",slab_automove=0"}, false},
		{"slab fit", []string{"slab"}, []string{"-M", "-F", "-o", "slab_automove=0"}, false},
		{"connections", []string{"connection"}, []string{"-M", "-F", "-c", "40", "-o", slabs + ",slab_automove=0"}, false},
		{"as recommended", nil, []string{"-M", "-F", "-c", "4096", "-o", slabs + ",slab_automove=0"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, time.Minute)
			args := append([]string{"-m", "64"}, c.args...)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "EXT", filepath.Join(r.Dir, "ext"))
			}
			srv := r.Careless(args...)
			if c.name == "slab fit" {
				r.Create(srv.URL(), "v", "1M") // seen only once a block is there
			}
			res := r.TryKvbfs("doctor", srv.URL())
			defer func(out string) {
				if t.Failed() {
					t.Logf("doctor said:\n%s", out)
				}
			}(res.Stdout)
			if want := map[bool]int{true: 1, false: 0}[c.refused]; res.Code != want {
				t.Errorf("doctor: status %d, want %d", res.Code, want)
			}
			found := c.words == nil
			lines := strings.Split(res.Stdout, "\n")
			for i, line := range lines[:len(lines)-1] {
				if !strings.Contains(line, " store ") || strings.HasPrefix(line, "info") {
					continue
				}
				if c.words == nil {
					t.Errorf("doctor finds fault with a good server: %s", line)
				} else if both := line + lines[i+1]; containsAll(both, c.words) && strings.Contains(lines[i+1], "fix: ") {
					found = true
				}
			}
			if !found {
				t.Errorf("no finding with a fix speaks of %q", c.words)
			}
			if c.words != nil && !strings.Contains(res.Stdout, "memcached -M -F") {
				t.Error("doctor does not show the right start line")
			}

			mnt := r.Mkdir("mnt")
			before := srv.Stat("cmd_set")
			res = r.TryKvbfs("mount", mnt, "--store", srv.URL())
			if !c.refused {
				if res.Code != 0 {
					t.Fatalf("mount: status %d\n%s", res.Code, res.All())
				}
				r.Kvbfs("umount", mnt)
				return
			}
			if res.Code != 1 || !strings.Contains(res.Stderr, "--dangerous") {
				t.Errorf("mounting a dangerous server: status %d, want 1\n%s", res.Code, res.All())
			}
			if srv.Stat("cmd_set") != before {
				t.Error("a refused mount wrote to the server")
			}
			if r.Daemon(mnt) != 0 {
				t.Error("a refused mount left a daemon")
			}
			if c.name == "item size" {
				return // no block fits: there is nothing to be brave about
			}
			r.Kvbfs("mount", mnt, "--store", srv.URL(), "--dangerous")
			if _, err := os.Stat(mnt); err != nil {
				t.Error(err)
			}
			r.Kvbfs("umount", mnt)
		})
	}
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}
