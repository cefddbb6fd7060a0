package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ReadyFD is the descriptor on which a daemon in the background tells its parent
// how the start went.
const ReadyFD = 3

// report is one line on the ready pipe.
type report struct {
	Notice string `json:"notice,omitempty"` // what the start waits for
	Banner string `json:"banner,omitempty"` // it serves
	Error  string `json:"error,omitempty"`  // it failed
	Status int    `json:"status,omitempty"` // exit status that goes with Error
}

// StartError is a start that failed: the child's own words and exit status.
type StartError struct {
	Text   string
	Status int
}

func (e *StartError) Error() string { return e.Text }

const (
	// startTime bounds a start: opening the store (15 s), the lease of a crashed
	// machine is not waited for at a mount, and the rest is quick.
	startTime = 45 * time.Second
	// stopTime is what a child has to clean up after a start that was given up.
	stopTime = 5 * time.Second
	// touchTime bounds the first look into the new mount.
	touchTime = 10 * time.Second
)

// Start runs this program again in the background, in its own session, with the
// given arguments, which must make it serve dir and report on ReadyFD (see
// Reporter). It returns the banner once a read of the mount succeeded. notice is
// told what the start waits for. On failure nothing is left behind; what the
// child said is a StartError. After caller was cancelled the error is context.Canceled
// alone.
func Start(caller context.Context, dir string, args []string, notice func(string)) (banner string, err error) {
	base, err := basePath(dir)
	if err != nil {
		return "", err
	}
	logPath := base + ".log"
	log, err := openLog(logPath)
	if err != nil {
		return "", err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		w.Close()
		return "", err
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/" // it must not keep the caller's directory busy
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w} // becomes ReadyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = inheritIOFlusher(cmd.Start)
	w.Close()
	if err != nil {
		removeLog(log, logPath)
		return "", err
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()

	ctx, cancel := context.WithTimeout(caller, startTime)
	defer cancel()
	banner, err = awaitReady(ctx, r, notice)
	if err == nil {
		err = touch(ctx, dir)
	}
	if err == nil {
		return banner, nil
	}
	interrupted := errors.Is(caller.Err(), context.Canceled)
	stop(cmd.Process, exited, dir, interrupted)
	if interrupted {
		removeLog(log, logPath) // it says that the start was given up
		return "", context.Canceled
	}
	var said *StartError
	if errors.As(err, &said) {
		removeLog(log, logPath)
		return "", err
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("mounting %s: %w", dir, ctx.Err())
	}
	end := tail(logPath)
	if end == "" {
		removeLog(log, logPath)
	}
	return "", fmt.Errorf("%w%s", err, end)
}

// awaitReady reads reports until one decides.
func awaitReady(ctx context.Context, r *os.File, notice func(string)) (string, error) {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		var line report
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return "", fmt.Errorf("what the daemon reported is not understood: %w", err)
		}
		switch {
		case line.Error != "":
			return "", &StartError{Text: line.Error, Status: max(line.Status, 1)}
		case line.Banner != "":
			return line.Banner, nil
		case notice != nil:
			notice(line.Notice)
		}
	}
	return "", errors.New("the daemon ended while it was starting")
}

// touch reads the mount's directory, as its first user will. A mount may hang, so
// this waits in a goroutine that is left behind then: the process is about to
// report the failure and end.
func touch(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, touchTime)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := os.ReadDir(dir)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("the mount was made but cannot be read: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the mount was made but does not answer")
	}
}

// stop ends a child whose start failed, and takes away what it left. One that does not
// know of the failure itself is not waited for first.
func stop(p *os.Process, exited <-chan struct{}, dir string, atOnce bool) {
	if atOnce {
		_ = p.Signal(syscall.SIGTERM)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-exited:
		case <-time.After(stopTime / 5):
			_ = p.Signal(sig)
			select {
			case <-exited:
			case <-time.After(stopTime):
			}
		}
	}
	_, _ = registered() // removes what a killed one left in the registry
	if m, ok := FUSEMount(dir); ok && m.Dead() {
		_ = Detach(dir)
	}
}

// tail returns the end of a log for a message, with where it is; nothing if the log
// is empty.
func tail(path string) string {
	data, err := os.ReadFile(path)
	text := strings.TrimSpace(string(data))
	if err != nil || text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return fmt.Sprintf("\n  its log, %s, ends: %s", filepath.Clean(path), lines[len(lines)-1])
}

// Reporter is the child's end of the ready pipe. The nil Reporter reports
// nothing.
type Reporter struct{ file *os.File }

// NewReporter takes the descriptor over.
func NewReporter(fd int) *Reporter {
	unix.CloseOnExec(fd)
	return &Reporter{os.NewFile(uintptr(fd), "ready pipe")}
}

func (r *Reporter) send(line report, last bool) {
	if r == nil || r.file == nil {
		return
	}
	data, err := json.Marshal(line)
	if err == nil {
		_, _ = r.file.Write(append(data, '\n')) // a parent that is gone needs nothing
	}
	if last {
		_ = r.file.Close()
		r.file = nil
	}
}

// Notice tells the parent what the start waits for.
func (r *Reporter) Notice(text string) { r.send(report{Notice: text}, false) }

// Ready tells the parent that the mount serves.
func (r *Reporter) Ready(banner string) { r.send(report{Banner: banner}, true) }

// Failed passes on why the start failed, with the exit status. After Ready it
// does nothing.
func (r *Reporter) Failed(err error, status int) {
	r.send(report{Error: err.Error(), Status: status}, true)
}
