package daemon

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A mount point has one log, and two starts at once both write to it before it is
// decided which of them serves. Each daemon has a shared flock on it, by the
// descriptor that its parent opened: who removes the log must be its only user.

// openLog opens the log of a daemon that is to be started, to append to it.
func openLog(path string) (*os.File, error) {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		// It fails, or the file is not at its path any more, if somebody removes it now.
		if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil && current(f) {
			return f, nil
		}
		if time.Now().After(deadline) {
			return f, nil // no start fails for its log
		}
		f.Close()
	}
}

// removeLog removes a log that f has open, unless another daemon uses it too.
func removeLog(f *os.File, path string) {
	var ours, there unix.Stat_t
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || unix.Fstat(int(f.Fd()), &ours) != nil || unix.Lstat(path, &there) != nil {
		return
	}
	if ours.Ino == there.Ino && ours.Dev == there.Dev {
		_ = os.Remove(path)
	}
}
