package devfuse

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs/internal/fusetest"
)

func TestMain(m *testing.M) { fusetest.Main(m) }

type handler struct {
	m     *fusetest.Mount
	later bool
	most  atomic.Int32
}

func (h *handler) Batch(_ int, entries []*Entry) {
	h.most.Store(max(h.most.Load(), int32(len(entries))))
	for _, e := range entries {
		h.m.Answer(e, h.later)
	}
}

func start(t *testing.T, h *handler) *Conn {
	t.Helper()
	h.m = fusetest.New(t, false)
	if err := ReadInit(h.m.FD, h.m.Init); err != nil {
		t.Fatal(err)
	}
	c, err := Start(h.m.FD, h, Options{Payload: fusetest.MaxWrite, Threads: 3})
	if err != nil {
		t.Fatal(err)
	}
	h.m.Ends(t, c.Wait)
	return c
}

// TestReadWrite: two processes at once, answered in place and later, with clones
// and without.
func TestReadWrite(t *testing.T) {
	for _, lone := range []bool{false, true} {
		for _, later := range []bool{false, true} {
			t.Run(fmt.Sprintf("lone=%v,later=%v", lone, later), func(t *testing.T) {
				if lone {
					defer func(old string) { device = old }(device)
					device = filepath.Join(t.TempDir(), "none")
				}
				h := &handler{later: later}
				c := start(t, h)
				if want := map[bool]int{false: 3, true: 1}[lone]; c.Threads() != want {
					t.Errorf("%d threads, want %d", c.Threads(), want)
				}
				h.m.Touch(t, 2)
			})
		}
	}
}

// TestKeptEntries: entries that are kept past the unmount end the connection only
// when they come back, and their replies go nowhere.
func TestKeptEntries(t *testing.T) {
	h := &keeper{kept: make(chan *Entry, 16)}
	h.m = fusetest.New(t, false)
	if err := ReadInit(h.m.FD, h.m.Init); err != nil {
		t.Fatal(err)
	}
	c, err := Start(h.m.FD, h, Options{Payload: fusetest.MaxWrite})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { h.m.Touch(ignore{t}, 1); close(done) }()
	e := <-h.kept
	// It aborts the connection, and is refused since the file is open.
	if err := unix.Unmount(h.m.Dir, unix.MNT_FORCE); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
	<-done
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	select {
	case <-ended:
		t.Error("the connection ended while an entry was kept")
	default:
	}
	e.Later(0, 4096)
	for len(h.kept) > 0 {
		(<-h.kept).Later(5, 0)
	}
	<-ended
}

// TestLargeEntriesAreFreed: after a burst a thread keeps small entries, and few large
// ones.
func TestLargeEntriesAreFreed(t *testing.T) {
	for _, large := range []bool{false, true} {
		th := &thread{c: &Conn{payload: 1 << 20}}
		for range 2 * kept {
			e, err := newEntry(th, th.c.payload)
			if err != nil {
				t.Fatal(err)
			}
			e.large = large
			th.out.Add(1)
			th.giveBack(e)
		}
		th.collect()
		if want := map[bool]int{false: kept, true: keptLarge}[large]; len(th.free) != want {
			t.Errorf("large %v: %d entries kept, want %d", large, len(th.free), want)
		}
		th.waiting = -1
		th.close()
	}
}

// ignore is a test whose process is expected to fail.
type ignore struct{ testing.TB }

func (ignore) Errorf(string, ...any) {}

type keeper struct {
	m    *fusetest.Mount
	kept chan *Entry
}

func (k *keeper) Batch(_ int, entries []*Entry) {
	for _, e := range entries {
		if e.In().Opcode == 15 { // READ
			k.kept <- e
			continue
		}
		k.m.Answer(e, false)
	}
}
