package daemon

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// oomScore asks the kernel to kill others first: who kills the daemon of a disk
// takes the file system above it along. -1000 would exempt it even when it leaks.
const oomScore = "-900"

// prepare asks the kernel for what a process that serves a disk needs, notes what it
// granted for the log, and returns what it refused, in words for the banner. All of it works
// without, but for what was asked for explicitly.
func (s *server) prepare() (notes []string, err error) {
	var granted []string
	// Memory reclaim that waits for dirty pages of our own disk must not wait in
	// an allocation of ours: that would be a circle.
	if err := ioFlusher(); err != nil {
		notes = append(notes, fmt.Sprintf("PR_SET_IO_FLUSHER: %v (needs CAP_SYS_RESOURCE): under memory pressure writes may stall", err))
	} else {
		granted = append(granted, "PR_SET_IO_FLUSHER")
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		notes = append(notes, fmt.Sprintf("oom_score_adj %s: %v (needs CAP_SYS_RESOURCE)", oomScore, unwrapPath(err)))
	} else {
		granted = append(granted, "oom_score_adj "+oomScore)
	}
	if s.cfg.MLock {
		if err := lockMemory(); err != nil {
			return nil, err
		}
		granted = append(granted, "locked memory")
	}
	s.files = raiseFiles()
	if s.files < wantFiles {
		notes = append(notes, fmt.Sprintf("only %d open files allowed (ulimit -n): few requests can wait for silent servers before others do too", s.files))
	}
	granted = append(granted, fmt.Sprintf("%d open files", s.files))
	s.granted = strings.Join(granted, ", ")
	return notes, nil
}

// raiseFiles raises the limit of open files as far as it goes, and returns it.
func raiseFiles() uint64 {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return wantFiles // unheard of: go on as if all were well
	}
	for _, want := range []unix.Rlimit{
		{Cur: max(lim.Max, wantFiles), Max: max(lim.Max, wantFiles)}, // root may exceed the hard limit
		{Cur: lim.Max, Max: lim.Max},
	} {
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
			return want.Cur
		}
	}
	return lim.Cur
}

// wantFiles is enough for 64 workers on 32 servers, and their volumes.
const wantFiles = 4096

const (
	// ownFiles is what the daemon itself has open: logs, locks, /dev/fuse, rings,
	// epoll, the control socket and its callers.
	ownFiles = 40
	// leastChannels can work: a worker, two for flushes, one for a reaper, one that
	// opens or closes a volume, and one that waits for a silent server.
	leastChannels = 6
)

// channels returns how many channels to the store the open files allow.
func (s *server) channels() (int, error) {
	per := len(s.stack.Store.Servers()) * max(s.cfg.Stack.Connections, 1)
	n := (int(min(s.files, 1<<20)) - ownFiles) / per
	if n < leastChannels {
		return 0, fmt.Errorf("only %d files may be open, and a store of %d server(s) needs %d at least: raise the limit (ulimit -n, or LimitNOFILE= of the service)",
			s.files, len(s.stack.Store.Servers()), ownFiles+leastChannels*per)
	}
	return n, nil
}

// lockMemory keeps what the process has and will have in memory, page by page as it
// is touched: the map of a large volume is a mapping of gigabytes, most of it never
// used.
func lockMemory() error {
	const onFault = 4 // MCL_ONFAULT, Linux 4.4
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err == nil && lim.Cur != unix.RLIM_INFINITY && os.Geteuid() != 0 {
		// The kernel would count the mappings whole, and the next one would fail.
		return fmt.Errorf("--mlock: only %d bytes may be locked: it needs CAP_IPC_LOCK or `ulimit -l unlimited`", lim.Cur)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault); err != nil {
		return fmt.Errorf("--mlock: locking memory: %w: it needs CAP_IPC_LOCK or `ulimit -l unlimited`", err)
	}
	return nil
}

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
