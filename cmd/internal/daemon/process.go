package daemon

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// oomScore asks the kernel to kill others first: who kills the daemon of a disk
// takes the file system above it along. -1000 would exempt it even when it leaks.
const oomScore = "-900"

// prepareProcess asks the kernel for what a process that serves a disk needs, and
// returns what it refused, in words for the banner. All of it works without.
func prepareProcess() (notes []string) {
	// Memory reclaim that waits for dirty pages of our own disk must not wait in
	// an allocation of ours: that would be a circle.
	if err := ioFlusher(); err != nil {
		notes = append(notes, fmt.Sprintf("PR_SET_IO_FLUSHER: %v (needs CAP_SYS_RESOURCE): under memory pressure writes may stall", err))
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		notes = append(notes, fmt.Sprintf("oom_score_adj %s: %v (needs CAP_SYS_RESOURCE)", oomScore, unwrapPath(err)))
	}
	// Go raises the soft limit of descriptors to the hard one by itself; only a low
	// hard limit needs a word.
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		want := unix.Rlimit{Cur: max(lim.Max, wantFiles), Max: max(lim.Max, wantFiles)}
		if lim.Max < wantFiles && unix.Setrlimit(unix.RLIMIT_NOFILE, &want) != nil {
			want = unix.Rlimit{Cur: lim.Max, Max: lim.Max}
			_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &want)
			notes = append(notes, fmt.Sprintf("only %d open files allowed (ulimit -n): many volumes or servers may fail", lim.Max))
		} else if lim.Cur < want.Max {
			_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &want)
		}
	}
	return notes
}

// wantFiles is enough for 64 workers on 32 servers, and their volumes.
const wantFiles = 4096

// ioFlusher sets PR_SET_IO_FLUSHER on all threads. It is a flag of a thread that
// new threads and programs inherit. In a program with cgo the runtime cannot
// reach all threads; there the parent of a daemon in the background has set it
// (inheritIOFlusher).
func ioFlusher() error {
	if on, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil {
		return err // EPERM: nothing below would work either
	} else if on == 1 {
		return nil
	}
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno == syscall.ENOTSUP {
		return errors.New("this build can set it in the background only (without -f)")
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// inheritIOFlusher runs start, which starts a child, with the flag set on this
// thread where that is allowed, so that the child has it from its first thread on.
func inheritIOFlusher(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0)
	}
	return start()
}

func unwrapPath(err error) error {
	if p, ok := err.(*os.PathError); ok {
		return p.Err
	}
	return err
}
