package demo

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/fusefs"
)

// crashAfter is how long the writers write before the daemon is killed.
const crashAfter = 300 * time.Millisecond

// ledger remembers what was acknowledged of the blocks of one writer.
type ledger struct {
	mu     sync.Mutex
	issued map[int64]uint64 // guarded by mu: version last sent, by offset
	acked  map[int64]uint64 // guarded by mu: version last acknowledged
	count  int64            // guarded by mu: acknowledged writes
}

// crash kills the column's daemon while eight writers write, starts another one
// and compares what it finds with what was acknowledged.
func (d *demo) crash(ctx context.Context, c *column) (cell, error) {
	m, ok := daemon.FindDir(c.dir)
	if !ok || m.PID <= 1 {
		return cell{}, fmt.Errorf("no daemon is registered for %s", c.dir)
	}
	path := filepath.Join(c.dir, benchVolume)
	fd, err := openDirect(path)
	if err != nil {
		return cell{}, err
	}
	led := &ledger{issued: map[int64]uint64{}, acked: map[int64]uint64{}}
	err = led.writeUntilKilled(ctx, fd, m.PID)
	unix.Close(fd)
	if err != nil {
		return cell{}, err
	}
	begin := time.Now()
	d.s.Lazy(ctx, c.dir) // what the dead daemon leaves of its mount
	if err := d.s.Mount(ctx, c.dir, c.url); err != nil {
		return cell{}, fmt.Errorf("after SIGKILL: %w", err)
	}
	if fd, err = openDirect(path); err != nil {
		return cell{}, fmt.Errorf("after SIGKILL: %w", err)
	}
	back := time.Since(begin)
	defer unix.Close(fd)
	lost, err := led.verify(ctx, fd)
	if err != nil {
		return cell{}, fmt.Errorf("after SIGKILL: %w", err)
	}
	if lost > 0 {
		return cell{}, fmt.Errorf("%d blocks of %d acknowledged writes are lost", lost, led.count)
	}
	return cell{Text: fmt.Sprintf("0 of %s lost", thousands(led.count)), Value: float64(led.count), Unit: "acknowledged writes, none lost",
		Note: fmt.Sprintf("back after %.1f s", back.Seconds())}, nil
}

// writeUntilKilled has eight writers write, and kills the daemon some time after the
// first write was acknowledged, however long that took.
func (l *ledger) writeUntilKilled(ctx context.Context, fd, pid int) error {
	ended := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for wait := time.Millisecond; ; {
			select {
			case <-ended:
				return
			case <-time.After(wait):
			}
			if wait == crashAfter {
				syscall.Kill(pid, syscall.SIGKILL)
				return
			}
			if l.acknowledged() > 0 {
				wait = crashAfter
			}
		}
	})
	err := workers(8, func(i int) error { return l.write(ctx, fd, i) })
	close(ended)
	killer.Wait()
	return err
}

// acknowledged is how many writes were.
func (l *ledger) acknowledged() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// write writes versions into blocks of its own until the daemon is dead.
func (l *ledger) write(ctx context.Context, fd, writer int) error {
	buf := aligned(blockSize)
	r := rand.New(rand.NewPCG(uint64(writer), 7))
	for version := uint64(1); ctx.Err() == nil; version++ {
		off := (r.Int64N(benchBytes/blockSize/8)*8 + int64(writer)) * blockSize
		stamp(buf, off, version)
		l.mu.Lock()
		l.issued[off] = version
		l.mu.Unlock()
		if err := full(unix.Pwrite(fd, buf, off))(blockSize); err != nil {
			if errors.Is(err, unix.EIO) || fusefs.Unserved(err) {
				return nil // what an open file sees of a dead daemon
			}
			return err
		}
		l.mu.Lock()
		l.acked[off] = version
		l.count++
		l.mu.Unlock()
	}
	return ctx.Err()
}

// stamp makes a block that says where it belongs and which version it is.
func stamp(b []byte, off int64, version uint64) {
	for i := 0; i < blockSize; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(off)+uint64(i))
		binary.LittleEndian.PutUint64(b[i+8:], version)
	}
}

// verify counts the blocks that are neither the version that was acknowledged
// nor the one that was on its way.
func (l *ledger) verify(ctx context.Context, fd int) (lost int, err error) {
	got, want := aligned(blockSize), make([]byte, blockSize)
	for off, version := range l.acked {
		if ctx.Err() != nil {
			return lost, ctx.Err()
		}
		if err := full(unix.Pread(fd, got, off))(blockSize); err != nil {
			return lost, fmt.Errorf("read at %d: %w", off, err)
		}
		stamp(want, off, version)
		if string(got) == string(want) {
			continue
		}
		stamp(want, off, l.issued[off])
		if string(got) != string(want) {
			lost++
		}
	}
	return lost, nil
}

// loss deletes the key of one block behind the daemon's back: the read must be
// an error, where a client that takes a miss for a hole returns zeros.
func (d *demo) loss(ctx context.Context, c *column) (cell, error) {
	if c.server == nil {
		return cell{Text: "-"}, nil
	}
	const off = 5 << 20
	out, err := d.s.Kvbfs(ctx, "volume", "where", benchVolume, fmt.Sprint(off), "--json", "--store", c.url)
	if err != nil {
		return cell{}, err
	}
	var place struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal([]byte(out), &place); err != nil || place.Key == "" {
		return cell{}, fmt.Errorf("kvbfs volume where printed %q", out)
	}
	fd, err := openDirect(filepath.Join(c.dir, benchVolume))
	if err != nil {
		return cell{}, err
	}
	defer unix.Close(fd)
	buf := aligned(blockSize)
	if err := full(unix.Pread(fd, buf, off))(blockSize); err != nil {
		return cell{}, fmt.Errorf("before the key is deleted: %w", err)
	}
	if reply, err := c.server.ask("delete " + place.Key); err != nil || reply != "DELETED" {
		return cell{}, fmt.Errorf("delete %s: memcached says %q (%v)", place.Key, reply, err)
	}
	if reply, err := c.server.ask("get " + place.Key); err != nil || reply != "END" {
		return cell{}, fmt.Errorf("get %s: memcached says %q (%v)", place.Key, reply, err)
	}
	switch _, err := unix.Pread(fd, buf, off); {
	case err == nil:
		return cell{}, errors.New("the read of a deleted block succeeded")
	case !errors.Is(err, unix.EIO):
		return cell{}, fmt.Errorf("the read of a deleted block gave %w, not EIO", err)
	}
	return cell{Text: "EIO, not zeros", Note: "(the server answers a plain miss, which others show as zeros)"}, nil
}
