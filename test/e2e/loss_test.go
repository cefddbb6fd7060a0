//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestLostKey: a block whose key is gone is EIO, its neighbours are not touched,
// and writing it anew heals it.
func TestLostKey(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, time.Minute)
	srv := r.Memcached(128)
	r.Create(srv.URL(), "v", "64M")
	m := r.Mount(srv.URL())
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 64, 1)
	const lost = 17
	p := r.Where(srv.URL(), "v", lost*rig.BlockSize)
	if !p.Present || !p.Stored {
		t.Fatalf("where: %+v, want a block that is present and stored", p)
	}
	if !srv.Delete(p.Key) {
		t.Fatalf("memcached has no key %q", p.Key)
	}
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	check := func(when string) {
		t.Helper()
		for i := range int64(64) {
			err := f.ReadAt(buf, i*rig.BlockSize)
			if i == lost {
				if !errors.Is(err, unix.EIO) {
					t.Fatalf("%s: reading the lost block: %v, want EIO", when, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: block %d: %v", when, i, err)
			}
			if rig.Stamp(want, i, 1); string(buf) != string(want) {
				t.Fatalf("%s: block %d is not what was written", when, i)
			}
		}
	}
	check("at once")
	// A read of many blocks that contains it fails as a whole.
	if err := f.ReadAt(rig.Aligned(64*rig.BlockSize), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("reading over the lost block: %v, want EIO", err)
	}
	f.Close()
	m.Umount()
	m.Mount(srv.URL())
	f = rig.Direct(t, m.Image("v"))
	check("after mounting again")
	rig.Stamp(want, lost, 2)
	copy(buf, want)
	if err := f.WriteAt(buf, lost*rig.BlockSize); err != nil {
		t.Fatalf("writing the lost block anew: %v", err)
	}
	if err := f.ReadAt(buf, lost*rig.BlockSize); err != nil || string(buf) != string(want) {
		t.Errorf("the block that was written anew: %v", err)
	}
	f.Close()
	m.Umount()
}

// TestTampered: a block whose bytes changed in the store, and one that is another
// block's, are EIO and never given out.
func TestTampered(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, time.Minute)
	srv := r.Memcached(128)
	r.Create(srv.URL(), "v", "64M")
	m := r.Mount(srv.URL())
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 8, 1)
	data := make([]byte, rig.BlockSize)
	put := func(from, to int64, change bool) {
		t.Helper()
		source, target := r.Where(srv.URL(), "v", from*rig.BlockSize), r.Where(srv.URL(), "v", to*rig.BlockSize)
		fields := strings.Fields(srv.Ask("get " + source.Key)[0]) // VALUE key flags length
		rig.Stamp(data, from, 1)
		if change {
			data[1000] ^= 1
		}
		if got := srv.Ask(fmt.Sprintf("set %s %s 0 %d\r\n%s", target.Key, fields[2], len(data), data)); got[0] != "STORED" {
			t.Fatalf("set: %q", got)
		}
	}
	put(3, 3, true)  // one bit
	put(4, 5, false) // a block that is whole, in the wrong place
	put(6, 6, false) // put back as it was: the method is sound
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for i := range int64(8) {
		err := f.ReadAt(buf, i*rig.BlockSize)
		if i == 3 || i == 5 {
			if !errors.Is(err, unix.EIO) {
				t.Errorf("block %d was tampered with: %v, want EIO", i, err)
			}
			continue
		}
		if rig.Stamp(want, i, 1); err != nil || string(buf) != string(want) {
			t.Errorf("block %d: %v", i, err)
		}
	}
	f.Close()
	m.Umount()
}

func fill(t *testing.T, f *rig.File, blocks int64, version uint64) {
	t.Helper()
	buf := rig.Aligned(rig.BlockSize)
	for i := range blocks {
		rig.Stamp(buf, i, version)
		if err := f.WriteAt(buf, i*rig.BlockSize); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestEmptiedServer: a server that was restarted has lost everything. Reads and
// flushes fail, nothing is zeros, and mounting again is refused until the user
// agrees to the loss.
func TestEmptiedServer(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	emptiedServer(t, r, r.Memcached(128).Engine(), "v")
}

func emptiedServer(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	r.Create(e.URL(), v, "64M")
	m := r.Mount(e.URL())
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 64, 1)
	e.Empty()
	buf := rig.Aligned(rig.BlockSize)
	for i := range int64(64) {
		if err := f.ReadAt(buf, i*rig.BlockSize); !errors.Is(err, unix.EIO) {
			t.Fatalf("block %d of an emptied server: %v, want EIO", i, err)
		}
	}
	for try := range 3 {
		if err := f.Sync(); !errors.Is(err, unix.EIO) {
			t.Fatalf("flush %d after the server was emptied: %v, want EIO each time", try, err)
		}
	}
	if err := f.WriteAt(buf, 0); err == nil {
		if err := f.Sync(); err == nil {
			t.Error("a write to an emptied server was flushed with success")
		}
	}
	f.Close()
	m.Kill()
	items := e.Items()
	refused := func(args ...string) {
		t.Helper()
		res := r.TryKvbfs(args...)
		if res.Code != 1 {
			t.Errorf("kvbfs %v on an emptied server: status %d, want 1\n%s", args, res.Code, res.All())
		}
		rig.OneLine(t, args[0], res.Stderr)
	}
	refused("mount", m.Dir, "--store", e.URL())
	refused("volume", "create", "w", "--size", "1M", "--store", e.URL())
	if n := e.Items(); n != items {
		t.Errorf("what was refused changed the server: %d items, %d before", n, items)
	}
	r.Kvbfs("pool", "forget", e.URL())
	r.Create(e.URL(), v, "64M")
	m.Mount(e.URL())
	if _, err := os.Stat(m.Image(v)); err != nil {
		t.Error(err)
	}
	m.Umount()
}

// TestOutage: while a server does not answer, requests wait and no error is
// given; they end when it goes on.
func TestOutage(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	outage(t, r, r.Memcached(128).Engine(), "v")
}

func outage(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	r.Create(e.URL(), v, "64M")
	m := r.Mount(e.URL())
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 64, 1)
	write := int64(3)
	if r.Defers() {
		write = 100 // a new block: no other write waits
	}
	e.Stop()
	done := make(chan error, 2)
	go func() {
		buf := rig.Aligned(rig.BlockSize)
		rig.Stamp(buf, write, 2)
		done <- f.WriteAt(buf, write*rig.BlockSize)
	}()
	go func() { done <- f.ReadAt(rig.Aligned(rig.BlockSize), 5*rig.BlockSize) }()
	select {
	case err := <-done:
		t.Errorf("a request ended while the server was stopped: %v", err)
	case <-time.After(stall(e, 3*time.Second, 3*time.Second)):
	}
	e.Continue()
	for range 2 {
		if err := <-done; err != nil {
			t.Errorf("after the outage: %v", err)
		}
	}
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	rig.Stamp(want, write, 2)
	if err := f.ReadAt(buf, write*rig.BlockSize); err != nil || string(buf) != string(want) {
		t.Errorf("the write of the outage: %v", err)
	}
	f.Close()
	m.Umount()
}
