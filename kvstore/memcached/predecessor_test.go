package memcached

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/wire"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// traces lists the files of a trace directory.
func traces(t *testing.T, dir string) []string {
	t.Helper()
	var lists []string
	files, err := os.ReadDir(dir)
	if !errors.Is(err, os.ErrNotExist) {
		want(t, err, nil)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), traceExt) {
			lists = append(lists, filepath.Join(dir, f.Name()))
		}
	}
	return lists
}

// tracedStore opens a store that leaves word of its connections in dir.
func tracedStore(t *testing.T, server *memcachedtest.Server, dir string) *Store {
	t.Helper()
	s, err := Open(bg(t), Config{Servers: []string{server.Addr()}, TraceDir: dir, Log: t.Logf})
	want(t, err, nil)
	return s
}

// TestTrace: a store's list has its connections while they are open, is locked, and
// goes with the store.
func TestTrace(t *testing.T) {
	server := memcachedtest.Start(t)
	dir := t.TempDir()
	s := tracedStore(t, server, dir)
	p := wiretest.Spread{N: 1}
	name, value := p.Sentinel(0)
	want(t, s.Control().Add(bg(t), 0, name, value), nil)
	want(t, s.Join(p), nil)
	if files := traces(t, dir); len(files) != 0 {
		t.Errorf("before the first connection: %v", files)
	}
	ch, err := s.Channel(bg(t))
	want(t, err, nil)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	files := traces(t, dir)
	if len(files) != 1 {
		t.Fatalf("with a connection: %v", files)
	}
	if _, dead := readTrace(files[0]); dead {
		t.Error("the list of a living process passes for one of a dead one")
	}
	want(t, ch.Close(), nil)
	want(t, s.Close(), nil)
	if files := traces(t, dir); len(files) != 0 {
		t.Errorf("after the close: %v", files)
	}
}

// TestTraceIsLocked: who finds the list of a process that is just starting does not take
// it for a dead one's, which he would remove.
func TestTraceIsLocked(t *testing.T) {
	for range 300 {
		dir := t.TempDir()
		looking, found := make(chan struct{}), make(chan bool)
		go func() {
			close(looking)
			for {
				if files, _ := filepath.Glob(filepath.Join(dir, "*"+traceExt)); len(files) > 0 {
					_, dead := readTrace(files[0])
					found <- dead
					return
				}
			}
		}()
		<-looking
		tr := trace{dir: dir}
		if slot := tr.add("/run/memcached.sock", 0); slot != 0 {
			t.Fatalf("who looks at the list kept it from being made: slot %d", slot)
		}
		dead := <-found
		tr.remove(0)
		tr.close()
		if dead {
			t.Fatal("the list of a living process passes for one of a dead one")
		}
	}
}

// TestSuccessorWaits: while a server still has a connection of a dead process nothing
// is sent to it, not even a read: a later one could find what the dead process had sent.
// When it has dropped it requests go on, and the list is gone.
func TestSuccessorWaits(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			server := memcachedtest.Start(t)
			if network == "tcp" {
				server = memcachedtest.Start(t, memcachedtest.TCP())
			}
			dir := filepath.Join(t.TempDir(), "[a]*") // no pattern
			// The dead process: its connection lives on, its list is not locked.
			sa, err := wire.Resolve(bg(t), server.Network(), server.Addr())
			want(t, err, nil)
			fd, _, err := wire.Dial(sa)
			want(t, err, nil)
			pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			_, _ = unix.Poll(pfd, 10000)
			ready, err := wire.Connected(fd)
			want(t, err, nil)
			if !ready {
				t.Fatal("not connected in 10 s")
			}
			old := trace{dir: dir}
			old.add(server.Addr(), wire.LocalPort(fd))
			old.file.Close()

			s := tracedStore(t, server, dir)
			defer s.Close()
			p := wiretest.Spread{N: 1}
			name, value := p.Sentinel(0)
			want(t, s.Control().Add(bg(t), 0, name, value), nil)
			want(t, s.Join(p), nil)
			ch := channelOf(t, s)
			r, w := read(1), write(1, kvstore.Any, block(1))
			for _, op := range []*kvstore.Op{r, w} {
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				ch.Do(ctx, []*kvstore.Op{op})
				cancel()
				want(t, op.Err, kvstore.ErrTimeout)
			}
			if !s.Haunted(w.Key) {
				t.Error("the store says that nothing of the dead process can come late")
			}
			unix.Close(fd)
			want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
			want(t, do1(t, ch, write(1, kvstore.Any, block(2))), nil)
			if s.Haunted(w.Key) {
				t.Error("the store says that something can come late after a later write")
			}
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				left := traces(t, dir)
				if len(left) == 1 { // our own
					break
				}
				if time.Now().After(end) {
					t.Fatalf("lists that are left: %v", left)
				}
			}
			_, err = os.Stat(dir)
			want(t, err, nil)
		})
	}
}
