package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A file is closed a moment after its last user has gone: a busy mount is
	// tried again before we call it busy.
	unmountTries = 6
	unmountPause = 10 * time.Millisecond // doubles

	// goneWait is how long after a plain unmount we wait for the kernel to end the
	// connection: longer means that another mount namespace has it still.
	goneWait = 10 * time.Second
	// forceGrace is what a forced unmount gives requests in flight.
	forceGrace = time.Second
)

// Unmount unmounts: ErrBusy if files are open or something is mounted on a
// device over them, with who it is. force detaches the mount from the names at
// once and, after a grace of a second, fails what is in flight. It returns when
// nothing is served any more. A mount that is gone already is success.
//
// The volumes are not closed then: that is Close's work.
func (s *Server) Unmount(force bool) error {
	if force { // takes no lock: it must work while a plain one waits
		return s.forceUnmount(s.conn.mountPoint())
	}
	s.unmounting.Lock()
	defer s.unmounting.Unlock()
	dir := s.conn.mountPoint()
	if dir == "" && s.ended(0) {
		return nil
	}
	if dir == "" {
		if s.ended(goneWait) {
			return nil
		}
		return fmt.Errorf("%w: %s is not mounted here any more, but in another mount namespace, or by a process that holds it", ErrBusy, s.dir)
	}
	var err error
	pause := unmountPause
	for try := range unmountTries {
		if try > 0 {
			time.Sleep(pause)
			pause *= 2
		}
		if err = unmount(dir, false); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		users := Users(dir)
		if len(users) == 0 {
			users = []string{"a process that cannot be seen from here"}
		}
		return fmt.Errorf("%w: %s is used by %s", ErrBusy, dir, strings.Join(users, ", "))
	case err != nil && !errors.Is(err, unix.EINVAL): // EINVAL: not a mount point any more
		return fmt.Errorf("unmounting %s: %w", dir, err)
	case !s.ended(goneWait):
		return fmt.Errorf("%w: %s is unmounted here, but another mount namespace has it still", ErrBusy, dir)
	}
	return nil
}

// forceUnmount needs a way to abort the connection, and there are two: the
// connection's file in /sys, which not every machine and no plain container has
// mounted, and MNT_FORCE, which needs the mount's name and so comes instead of
// detaching first.
func (s *Server) forceUnmount(dir string) error {
	switched := s.conn.hasSwitches()
	if dir != "" {
		// A connection that was aborted ended us and left its mount.
		if err := unmount(dir, switched || s.ended(0)); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
			s.opt.Log("detaching %s: %v", dir, err)
		}
	}
	if s.ended(forceGrace) {
		return nil
	}
	var err error
	if switched {
		err = s.conn.abort()
	} else if err = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EPERM) {
		_ = unmount(dir, true)
	}
	s.cancel() // requests that wait for a store give up within a second
	if s.ended(goneWait) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s is detached, but its connection could not be aborted: %w", ErrBusy, s.dir, err)
	}
	return fmt.Errorf("%w: %s is detached and aborted, but requests are still in flight", ErrBusy, s.dir)
}

// ended says whether nobody serves any more, and waits for that so long.
func (s *Server) ended(wait time.Duration) bool {
	select {
	case <-s.done:
		return true
	default:
	}
	select {
	case <-s.done:
		return true
	case <-time.After(wait):
		return false
	}
}

// unmount unmounts with umount2(2), or through fusermount3 where that is not
// permitted. The path is not followed into the mount.
func unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	arg := "-u"
	if lazy {
		flags |= unix.MNT_DETACH
		arg = "-uz"
	}
	err := unix.Unmount(dir, flags)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	bin, lookErr := helper()
	if lookErr != nil {
		return err
	}
	cmd := exec.Command(bin, arg, "--", dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		text := firstLine(stderr.String(), err)
		// fusermount tells errno only as text, in the language of libc's C locale.
		if strings.Contains(text, unix.EBUSY.Error()) || strings.Contains(text, "busy") {
			return unix.EBUSY
		}
		return errors.New(text)
	}
	return nil
}
