package uring_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs/internal/fusetest"
	"github.com/kvbfs/kvbfs/fusefs/uring"
)

func TestMain(m *testing.M) { fusetest.Main(m) }

type handler struct {
	m     *fusetest.Mount
	later bool
}

func (h *handler) Batch(_ int, entries []*uring.Entry) {
	for _, e := range entries {
		h.m.Answer(e, h.later)
	}
}

// TestReadWrite: two processes at once, answered in place and later.
func TestReadWrite(t *testing.T) {
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprintf("later=%v", later), func(t *testing.T) {
			m := fusetest.New(t, true)
			buf := make([]byte, fusetest.MaxWrite+4096)
			n, err := unix.Read(m.FD, buf)
			if err != nil {
				t.Fatal(err)
			}
			reply, err := m.Init(buf[:n])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(m.FD, reply); err != nil {
				t.Fatal(err)
			}
			c, err := uring.Start(m.FD, &handler{m, later}, uring.Options{Payload: fusetest.MaxWrite})
			if err != nil {
				t.Fatal(err)
			}
			m.Ends(t, c.Wait)
			m.Touch(t, 2)
		})
	}
}
