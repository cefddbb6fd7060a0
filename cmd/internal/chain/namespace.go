package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// insideVariable tells the program that it runs in the namespaces that Enter made.
const insideVariable = "KVBFS_NAMESPACE"

// Inside says whether this process was started by Enter.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Enter runs this program again with args, in a user namespace, in which the user
// is root, and a mount namespace of its own: what is mounted there is seen there
// only, and gone with the last process. It returns the child's exit status.
//
// Inside, root's directories are out of reach: those of the user are named in the
// environment.
func Enter(ctx context.Context, args []string) (status int, err error) {
	if fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("/dev/fuse: %w: ask for `chmod 666 /dev/fuse`, in a container pass --device /dev/fuse", err)
	} else {
		unix.Close(fd)
	}
	env, err := insideEnvironment()
	if err != nil {
		return 0, err
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGTERM,
	}
	// The parent of Pdeathsig is the thread, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
			return 0, fmt.Errorf("user namespaces are not allowed here (%w): see the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone, or run as root without --rootless", err)
		}
		return 0, err
	}
	return await(ctx, cmd)
}

// insideEnvironment names the user's own places to a process that seems to be root.
func insideEnvironment() ([]string, error) {
	url, _ := stack.DefaultURL()
	runtimeDir, err := stack.RuntimeDir()
	if err != nil {
		return nil, err
	}
	stateDir, err := stack.StateDir()
	if err != nil {
		return nil, err
	}
	return []string{insideVariable + "=1", "KVBFS_STORE=" + url, "KVBFS_RUNTIME_DIR=" + runtimeDir, "KVBFS_STATE_DIR=" + stateDir}, nil
}

// Command runs a command with our input and output while the volume is up, and
// returns its exit status, 128 + N if signal N ended it. When ctx ends it is told
// to end as well.
func Command(ctx context.Context, args []string, env ...string) (status int, err error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return await(ctx, cmd)
}

// await waits for a child that shares our terminal. Ctrl-C reaches it by itself;
// what else ends ctx is passed on.
func await(ctx context.Context, cmd *exec.Cmd) (int, error) {
	// A second Ctrl-C is for the child as well: we clean up after it.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
		case <-ctx.Done():
			select {
			case <-done:
			case <-time.After(time.Second): // it may have had the same Ctrl-C
				_ = cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal()), nil
	}
	return exit.ExitCode(), nil
}
