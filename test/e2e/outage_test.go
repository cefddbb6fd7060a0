//go:build e2e

package e2e

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestIOTimeout: with --io-timeout a server that falls silent gives EIO after
// that time and not before; without it requests wait; and the setting can be
// changed while mounted. When the server goes on, so does the volume.
func TestIOTimeout(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	if r.Defers() {
		t.Skip("with write-back overwrites do not wait, flushes do: TestWriteBackOutage")
	}
	srv := r.Memcached(128)
	store := srv.URL()
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 64, 1)
	r.Kvbfs("volume", "set", "v", "--io-timeout", "2s", "--store", store)

	read := func() chan error {
		done := make(chan error, 1)
		go func() { done <- f.ReadAt(rig.Aligned(rig.BlockSize), 5*rig.BlockSize) }()
		return done
	}
	write := func(version uint64) chan error {
		done := make(chan error, 1)
		go func() {
			buf := rig.Aligned(rig.BlockSize)
			rig.Stamp(buf, 9, version)
			done <- f.WriteAt(buf, 9*rig.BlockSize)
		}()
		return done
	}
	var begin time.Time // before the request
	failsInTime := func(what string, done chan error) {
		t.Helper()
		select {
		case err := <-done:
			if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("%s while the server is silent: %v, want EIO", what, err)
			}
			if took := time.Since(begin); took < time.Second {
				t.Errorf("%s gave up after %v, before the 2 s it was told", what, took)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s still waits 20 s after the server fell silent", what)
		}
	}
	srv.Stop()
	begin = time.Now()
	r1, w1 := read(), write(2)
	failsInTime("a read", r1)
	if err := <-w1; err == nil {
		t.Error("a write was acknowledged by a server that is stopped")
	}
	srv.Continue()
	rig.Eventually(t, 20*time.Second, "reads succeed again", func() bool { return <-read() == nil })
	rig.Eventually(t, 20*time.Second, "writes succeed again", func() bool { return <-write(3) == nil })

	r.Kvbfs("volume", "set", "v", "--io-timeout", "0", "--store", store)
	srv.Stop()
	r1, w1 = read(), write(4)
	select {
	case err := <-r1:
		t.Fatalf("without --io-timeout a read ended: %v", err)
	case err := <-w1:
		t.Fatalf("without --io-timeout a write ended: %v", err)
	case <-time.After(5 * time.Second):
	}
	srv.Continue()
	for _, done := range []chan error{r1, w1} {
		if err := <-done; err != nil {
			t.Errorf("after the outage: %v", err)
		}
	}
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	rig.Stamp(want, 9, 4)
	if err := f.ReadAt(buf, 9*rig.BlockSize); err != nil || string(buf) != string(want) {
		t.Errorf("the write that waited: %v", err)
	}
	f.Close()
	m.Umount()
}
