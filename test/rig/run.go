package rig

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// CommandLimit is how long one command may take unless said otherwise. Nothing
// that the tests do in one command takes that long on two slow cores.
const CommandLimit = 4 * time.Minute

// Result is what a command left behind.
type Result struct {
	Args           []string
	Code           int // exit status; -1: killed by a signal or by the limit
	Stdout, Stderr string
	Took           time.Duration
	Err            error // what exec says
}

// All is stdout and stderr, for messages.
func (r Result) All() string { return strings.TrimSpace(r.Stdout + "\n" + r.Stderr) }

// Cmd is a command to be run in the rig's environment.
type Cmd struct {
	Args  []string
	Dir   string
	Env   []string // added
	Stdin io.Reader
	Limit time.Duration // 0: CommandLimit
	Log   string        // for Start: file for its output, which else is dropped
}

// Do runs a command, in a process group of its own, and kills the group at the
// limit. It never fails the test.
func (r *Rig) Do(c Cmd) Result {
	limit := c.Limit
	if limit == 0 {
		limit = CommandLimit
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = append(r.Env(), c.Env...)
	cmd.Dir = c.Dir
	cmd.Stdin = c.Stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A daemon that inherits the pipes must not keep us waiting for their end.
	cmd.WaitDelay = 2 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	begin := time.Now()
	err := cmd.Run()
	res := Result{Args: c.Args, Stdout: out.String(), Stderr: errs.String(), Took: time.Since(begin), Err: err}
	if cmd.ProcessState == nil {
		res.Code = -1
	} else {
		res.Code = cmd.ProcessState.ExitCode()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		// The command itself ended well; somebody else kept its output open.
		res.Err = nil
	}
	return res
}

// Try runs a command and returns how it went.
func (r *Rig) Try(args ...string) Result { return r.Do(Cmd{Args: args}) }

// Run runs a command that must succeed and returns its standard output.
func (r *Rig) Run(args ...string) string {
	r.T.Helper()
	return r.Must(Cmd{Args: args}).Stdout
}

// Must runs a command that must succeed.
func (r *Rig) Must(c Cmd) Result {
	r.T.Helper()
	res := r.Do(c)
	if res.Code != 0 || res.Err != nil {
		r.T.Fatalf("%s: status %d, %v, after %v\n%s", strings.Join(c.Args, " "), res.Code, res.Err,
			res.Took.Round(time.Millisecond), res.All())
	}
	return res
}

// Kvbfs runs a verb of kvbfs that must succeed; TryKvbfs one that may not.
func (r *Rig) Kvbfs(args ...string) string {
	r.T.Helper()
	return r.Run(append([]string{r.Bin}, args...)...)
}

// TryKvbfs runs a verb and returns how it went.
func (r *Rig) TryKvbfs(args ...string) Result {
	return r.Do(Cmd{Args: append([]string{r.Bin}, args...)})
}

// Start starts a command that keeps running; the sweep kills it.
func (r *Rig) Start(c Cmd) *exec.Cmd {
	r.T.Helper()
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(r.Env(), c.Env...)
	cmd.Dir = c.Dir
	cmd.Stdin = c.Stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Log != "" {
		log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			r.T.Fatal(err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	if err := cmd.Start(); err != nil {
		r.T.Fatalf("%s: %v", strings.Join(c.Args, " "), err)
	}
	return cmd
}

// OneLine fails unless text is one clear line, with at most one more below it,
// indented, that says what to do: not empty, no panic, no stack.
func OneLine(t testing.TB, what, text string) {
	t.Helper()
	text = strings.TrimSpace(text)
	_, hint, hinted := strings.Cut(text, "\n")
	switch {
	case text == "":
		t.Errorf("%s: no message", what)
	case strings.Contains(text, "panic:") || strings.Contains(text, "goroutine "):
		t.Errorf("%s: a panic\n%s", what, text)
	case hinted && (!strings.HasPrefix(hint, "  ") || strings.Contains(hint, "\n")):
		t.Errorf("%s: more than one line\n%s", what, text)
	case !strings.HasPrefix(text, "kvbfs: "):
		t.Errorf("%s: does not begin with who speaks: %q", what, text)
	}
}
