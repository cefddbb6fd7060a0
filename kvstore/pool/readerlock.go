package pool

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// readerLock proves to others of this machine that a reader lives: a file in the
// runtime directory that is locked while it does.
type readerLock struct {
	f    *os.File // nil: without a runtime directory nobody shares this machine's id
	path string
}

func (p *Pool) readerPath(id [16]byte) string {
	return filepath.Join(p.opt.RuntimeDir, hex.EncodeToString(id[:])+".reader")
}

// lockReader makes the file. Nobody looks for it before its id is in a record.
func (p *Pool) lockReader(id [16]byte) (*readerLock, error) {
	if p.opt.RuntimeDir == "" {
		return &readerLock{}, nil
	}
	path := p.readerPath(id)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		_ = os.Remove(path)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &readerLock{f, path}, nil
}

// free removes the file. What the reader's entry in a record says then is void.
func (l *readerLock) free() {
	if l.f != nil {
		_ = os.Remove(l.path)
		_ = l.f.Close()
	}
}

// readerUnlocked says whether a reader of this machine has ended, and removes what
// it left.
func (p *Pool) readerUnlocked(id [16]byte) bool {
	if p.opt.RuntimeDir == "" {
		return false
	}
	path := p.readerPath(id)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		return false
	}
	_ = os.Remove(path)
	return true
}
