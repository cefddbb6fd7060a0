package devfuse

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Offline is a thread with no kernel behind it: tests of a [Handler] give it
// requests byte by byte, also such as no kernel sends, and read the answers. Its
// methods are for one goroutine; entries may be answered by any.
type Offline struct {
	t       *thread
	ours    int // where replies are written to
	theirs  int // the kernel's end
	answers chan []byte
	reader  sync.WaitGroup
}

// NewOffline makes a thread whose entries have payload buffers of so many bytes.
func NewOffline(payload int) (*Offline, error) {
	// Packets, as each write(2) is one reply on /dev/fuse.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	size := (max(payload, minPayload) + page - 1) &^ (page - 1)
	o := &Offline{t: &thread{c: &Conn{fd: -1, payload: size}, waiting: -1, ready: -1}, ours: fds[0], theirs: fds[1], answers: make(chan []byte, 64)}
	o.reader.Go(func() {
		// Beside the handler, whose writes wait while the socket is full.
		defer close(o.answers)
		for buf := make([]byte, outHeader+size+page); ; {
			n, err := unix.Read(o.theirs, buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			o.answers <- append([]byte(nil), buf[:n]...)
		}
	})
	return o, nil
}

// Request is what read(2) of /dev/fuse would have returned; it is copied.
func (o *Offline) Request(request []byte) (*Entry, error) {
	o.t.collect()
	e := o.t.spare()
	if e == nil {
		return nil, unix.ENOMEM
	}
	if len(request) < inHeader || len(request) > len(e.room()) {
		o.t.keep(e)
		return nil, fmt.Errorf("a request of %d bytes, want %d to %d", len(request), inHeader, len(e.room()))
	}
	e.fd, e.n = o.ours, copy(e.room(), request)
	o.t.out.Add(1)
	return e, nil
}

// offlineLimit bounds the wait for answers: an entry that is never answered.
const offlineLimit = time.Minute

// Answers waits until all entries came back and returns what was written, in order.
func (o *Offline) Answers() (out [][]byte, err error) {
	back := make(chan struct{})
	go func() { o.t.out.Wait(); close(back) }()
	limit := time.NewTimer(offlineLimit)
	defer limit.Stop()
	end := []byte("end of the answers")
	for {
		select {
		case <-back:
			back = nil
			if _, err := unix.Write(o.ours, end); err != nil {
				return nil, err
			}
		case <-limit.C:
			return nil, fmt.Errorf("a request was not answered within %v", offlineLimit)
		case a := <-o.answers:
			if string(a) == string(end) {
				return out, nil
			}
			if len(a) < outHeader || int(binary.NativeEndian.Uint32(a)) != len(a) {
				return nil, fmt.Errorf("an answer of %d bytes whose header says otherwise", len(a))
			}
			out = append(out, a)
		}
	}
}

// Close frees what it has. All entries must have come back.
func (o *Offline) Close() error {
	err := unix.Close(o.ours)
	o.reader.Wait()
	o.t.close()
	if e := unix.Close(o.theirs); err == nil {
		err = e
	}
	return err
}
