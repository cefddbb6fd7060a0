package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// locked runs f while this process alone may change records and layers. create
// says that the directory is made if it is not there; without, ErrAbsent.
//
// The flock is tried and not waited for, because a process that is stopped while
// it holds the lock must not make ours deaf to its context.
func (s *Store) locked(ctx context.Context, create bool, f func() error) error {
	select {
	case <-s.change:
	case <-ctx.Done():
		return ended(ctx)
	}
	defer func() { s.change <- struct{}{} }()
	if err := s.usable(ctx); err != nil {
		return err
	}
	if create {
		if err := s.makeTop(); errors.Is(err, kvstore.ErrInvalid) {
			return err
		} else if err != nil {
			return classify(err, kvstore.ErrUnreachable)
		}
	}
	if err := s.takeLock(ctx); err != nil {
		return err
	}
	defer func() { _ = unix.Flock(s.lockFD, unix.LOCK_UN) }() // cannot fail on an open file
	if create {
		if err := s.makeInside(); err != nil {
			return classify(err, kvstore.ErrUnreachable)
		}
	}
	return f()
}

// takeLock takes the flock of the lock file that the directory has now.
func (s *Store) takeLock(ctx context.Context) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if err := s.openLock(); err != nil {
			return err
		}
		err := unix.Flock(s.lockFD, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil && s.lockIsCurrent():
			return nil
		case err == nil:
			// The directory was replaced: this lock excludes nobody.
			_ = unix.Close(s.lockFD)
			s.lockFD = -1
			continue
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return classify(err, kvstore.ErrUnreachable)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ended(ctx)
		}
	}
}

// openLock opens the lock file, made if the directory is there: else ErrAbsent.
func (s *Store) openLock() error {
	if s.lockFD >= 0 {
		return nil
	}
	fd, err := unix.Open(filepath.Join(s.dir, lockName), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		s.lockFD = fd
		return nil
	case err == unix.ENOENT:
		return kvstore.ErrAbsent
	}
	return classify(&os.PathError{Op: "open", Path: lockName, Err: err}, kvstore.ErrUnreachable)
}

// lockIsCurrent says whether the open lock file is the one of that name.
func (s *Store) lockIsCurrent() bool {
	var open, named unix.Stat_t
	return unix.Fstat(s.lockFD, &open) == nil &&
		unix.Stat(filepath.Join(s.dir, lockName), &named) == nil &&
		open.Ino == named.Ino && open.Dev == named.Dev
}
