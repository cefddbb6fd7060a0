package file_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// Looking at a store that does not exist leaves no trace; the first change makes
// it, for its owner alone.
func TestOpenMakesNothing(t *testing.T) {
	ctx, top := context.Background(), t.TempDir()
	dir := filepath.Join(top, "a", "b")
	s, err := file.Open(dir, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Control().Get(ctx, 0, "a:b"); !errors.Is(err, kvstore.ErrAbsent) {
		t.Errorf("get: %v", err)
	}
	if err := s.Control().Swap(ctx, 0, "a:b", kvstore.Record{}, nil); !errors.Is(err, kvstore.ErrAbsent) {
		t.Errorf("swap: %v", err)
	}
	if err := s.Control().Delete(ctx, 0, "a:b"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := s.RemoveLayer(ctx, 1); err != nil {
		t.Errorf("remove layer: %v", err)
	}
	if u, err := s.Usage(ctx); err != nil || u.Capacity == 0 {
		t.Errorf("usage: %+v, %v", u, err)
	}
	if _, err := s.Inspect(ctx); err != nil {
		t.Errorf("inspect: %v", err)
	}
	if names, _ := os.ReadDir(top); len(names) != 0 {
		t.Errorf("%v was made", names)
	}
	if err := s.Control().Add(ctx, 0, "a:b", nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
}

// A directory that is somebody else's, or holds other things, is refused.
func TestRefusedDirectories(t *testing.T) {
	refused := func(dir, word string) {
		t.Helper()
		if s, err := file.Open(dir, file.Options{}); err == nil {
			s.Close()
			t.Errorf("%s was opened", dir)
		} else if !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), dir) {
			t.Errorf("error %q does not name %s and %q", err, dir, word)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(full, "thesis.txt")
	refused(filepath.Join(full, "thesis.txt"), "not a directory")
	if err := os.WriteFile(filepath.Join(full, "KVBFS"), []byte("kvbfs file store, version 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(full, "version 9")
	if os.Geteuid() == 0 {
		foreign := t.TempDir()
		if err := os.Chown(foreign, 12345, -1); err != nil {
			t.Fatal(err)
		}
		refused(foreign, "12345")
	}
}

// tmpfs mounts a small file system, or skips.
func tmpfs(t testing.TB, size string) string {
	dir := t.TempDir()
	if err := unix.Mount("kvbfs-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
	return filepath.Join(dir, "store")
}

// The suite again on a small file system in memory: full, and volatile.
func TestConformanceSmall(t *testing.T) {
	storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
		dir := tmpfs(t, "8m")
		s, err := file.Open(dir, file.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if d := s.Properties().Durability; d != kvstore.Volatile {
			t.Errorf("durability on tmpfs is %v", d)
		}
		return storetest.Rig{Store: s}
	})
}

// A run of which only some blocks fit: each has its own result.
func TestFullInsideARun(t *testing.T) {
	s, err := file.Open(tmpfs(t, "1m"), file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	if err := errors.Join(s.Join(storetest.Place(1)), s.CreateLayer(ctx, 1)); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	write := func(n uint64) *kvstore.Op {
		op := &kvstore.Op{Code: kvstore.Write, Key: kvstore.Key{Layer: 1, Number: n}, Data: make([]byte, kvstore.BlockSize)}
		binary.BigEndian.PutUint64(op.Data, n)
		return op
	}
	// A block at the end exists already: it can be overwritten when all before
	// it fail.
	const n = 600 // 2.4 MiB
	ch.Do(ctx, []*kvstore.Op{write(n - 1)})
	var ops []*kvstore.Op
	for i := range uint64(n) {
		ops = append(ops, write(i))
	}
	ch.Do(ctx, ops)
	stored := 0
	for i, op := range ops {
		switch {
		case op.Err == nil:
			stored++
		case !errors.Is(op.Err, kvstore.ErrFull):
			t.Fatalf("block %d: %v", i, op.Err)
		}
	}
	if stored < 100 || stored > 256 || ops[n-1].Err != nil {
		t.Errorf("%d blocks stored in 1 MiB; the one that existed: %v", stored, ops[n-1].Err)
	}
	if got, err := s.Allocated(ctx, 1); err != nil || got != uint64(stored) {
		t.Errorf("%d blocks acknowledged, %d allocated, %v", stored, got, err)
	}
	found, err := s.Inspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	words := ""
	for _, f := range found {
		words += f.What + "\n"
	}
	if !strings.Contains(words, "almost full") || !strings.Contains(words, "in memory") {
		t.Errorf("findings: %s", words)
	}
}

// Data, records and claims are there after opening anew.
func TestReopen(t *testing.T) {
	dir, ctx := filepath.Join(t.TempDir(), "store"), context.Background()
	for round := range byte(3) {
		s, err := file.Open(dir, file.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Join(storetest.Place(1)); err != nil {
			t.Fatal(err)
		}
		if err := s.CreateLayer(ctx, 1); (round == 0) != (err == nil) {
			t.Errorf("round %d: claim: %v", round, err)
		}
		ch, err := s.Channel(ctx)
		if err != nil {
			t.Fatal(err)
		}
		op := &kvstore.Op{Code: kvstore.Read, Key: kvstore.Key{Layer: 1, Number: 9}, Data: make([]byte, kvstore.BlockSize)}
		ch.Do(ctx, []*kvstore.Op{op})
		if op.Err != nil || op.Data[7] != round {
			t.Errorf("round %d: %v, data %d", round, op.Err, op.Data[7])
		}
		op.Code, op.Data[7] = kvstore.Write, round+1
		ch.Do(ctx, []*kvstore.Op{op})
		if err := errors.Join(op.Err, ch.Flush(ctx, 1), ch.Close(), s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Many processes raise one counter; the store does not exist before.
func TestRecordsBetweenProcesses(t *testing.T) {
	if dir := os.Getenv("KVBFS_TEST_COUNTER"); dir != "" {
		raiseCounter(t, dir)
		return
	}
	dir := filepath.Join(t.TempDir(), "store")
	const processes = 4
	var running []*exec.Cmd
	for range processes {
		c := exec.Command(os.Args[0], "-test.run=^TestRecordsBetweenProcesses$")
		c.Env = append(os.Environ(), "KVBFS_TEST_COUNTER="+dir)
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		c.Stdout = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, c)
	}
	for _, c := range running {
		if err := c.Wait(); err != nil {
			t.Errorf("a process: %v", err)
		}
	}
	s, err := file.Open(dir, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rec, err := s.Control().Get(context.Background(), 0, "count:er")
	if err != nil || binary.BigEndian.Uint64(rec.Value) != processes*counterRounds {
		t.Errorf("counter: %v, %v, want %d", rec.Value, err, processes*counterRounds)
	}
}

const counterRounds = 25

func raiseCounter(t *testing.T, dir string) {
	ctx := context.Background()
	s, err := file.Open(dir, file.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := s.Control()
	if err := c.Add(ctx, 0, "count:er", make([]byte, 8)); err != nil && !errors.Is(err, kvstore.ErrExists) {
		t.Fatal(err)
	}
	for done := 0; done < counterRounds; {
		old, err := c.Get(ctx, 0, "count:er")
		if err != nil {
			t.Fatal(err)
		}
		next := binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(old.Value)+1)
		switch err := c.Swap(ctx, 0, "count:er", old, next); {
		case err == nil:
			done++
		case !errors.Is(err, kvstore.ErrConflict):
			t.Fatal(err)
		}
	}
}

// Of those who use a new directory at once nobody is told that it holds other things.
func TestFirstUsers(t *testing.T) {
	top := t.TempDir()
	for i := range 300 {
		dir := filepath.Join(top, strconv.Itoa(i))
		var all sync.WaitGroup
		for n := range 4 {
			all.Go(func() {
				s, err := file.Open(dir, file.Options{NoSync: true})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				if err := s.Control().Add(context.Background(), 0, "a:"+strconv.Itoa(n), nil); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}
