// Package memcachedtest starts private memcached servers for tests: on a unix
// socket in a temporary directory, or on a free TCP port of 127.0.0.1, killed by
// process id when the test ends, however it ends.
package memcachedtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// StartLine is what kvbfs asks of a memcached, less memory, address and user:
// no evictions (-M), no flush_all (-F), slab classes that fit 4 KiB blocks, and
// no page moves between classes, which may evict even under -M.
var StartLine = []string{
	"-M", "-F", "-t", "4", "-R", "128", "-c", "4096",
	"-o", "slab_sizes=96-192-4176-4240-8352,slab_automove=0",
}

// Server is one private memcached. Its methods belong to the test's goroutine.
type Server struct {
	t    testing.TB
	args []string
	addr string
	cmd  *exec.Cmd
	dead chan struct{} // closed when cmd was waited for
}

type config struct {
	tcp   bool
	megs  int
	line  []string
	extra []string
}

// Option changes how a server is started.
type Option func(*config)

// TCP lets the server listen on a free port of 127.0.0.1 and not on a socket.
func TCP() Option { return func(c *config) { c.tcp = true } }

// MemoryMB sets the memory for items (-m); the default is 64.
func MemoryMB(n int) Option { return func(c *config) { c.megs = n } }

// Args adds arguments behind the start line.
func Args(args ...string) Option {
	return func(c *config) { c.extra = append(c.extra, args...) }
}

// Bare leaves StartLine away: a server as a careless user would start it.
func Bare() Option { return func(c *config) { c.line = nil } }

// Start starts a server and stops it when the test ends. Where memcached is not
// installed the test is skipped, but fails if the environment has CI=true.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin, err := exec.LookPath("memcached")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("memcached is not installed, and CI=true must not skip")
		}
		t.Skip("memcached is not installed")
	}
	c := config{megs: 64, line: StartLine}
	for _, o := range opts {
		o(&c)
	}
	s := &Server{t: t}
	s.args = append([]string{bin, "-m", strconv.Itoa(c.megs)}, c.line...)
	s.args = append(s.args, c.extra...)
	if os.Geteuid() == 0 {
		s.args = append(s.args, "-u", "root")
	}
	if c.tcp {
		port := storetest.FreePort(t, 0)
		s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		s.args = append(s.args, "-l", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "0")
	} else {
		// Not t.TempDir: its path holds the test's name, and a socket's path is
		// limited to 107 bytes.
		dir, err := os.MkdirTemp("", "mc")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		s.addr = filepath.Join(dir, "s")
		s.args = append(s.args, "-s", s.addr)
	}
	t.Cleanup(s.Stop)
	s.start()
	return s
}

// Addr is the socket's path, or host:port.
func (s *Server) Addr() string { return s.addr }

// Network is "unix" or "tcp".
func (s *Server) Network() string {
	if s.addr[0] == '/' {
		return "unix"
	}
	return "tcp"
}

// URL names the server as --store takes it.
func (s *Server) URL() string {
	if s.Network() == "unix" {
		return "memcached+unix://" + s.addr
	}
	return "memcached://" + s.addr
}

// PID of the running server, 0 when stopped.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Stop kills the server; what it held is gone. Stopping twice does nothing.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	// SIGKILL also ends a paused process.
	_ = s.cmd.Process.Kill()
	<-s.dead
	s.cmd = nil
	if s.Network() == "unix" {
		_ = os.Remove(s.addr)
	}
}

// Restart kills the server and starts it again, empty, at the same address.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Pause stops the process (SIGSTOP): connections stay, nothing answers. It
// returns when all threads have stopped.
func (s *Server) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	for range 20000 {
		if s.stopped() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatalf("memcached on %s does not stop", s.addr)
}

// stopped says whether every thread is in state T.
func (s *Server) stopped() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.PID()))
	for _, file := range threads {
		stat, err := os.ReadFile(file)
		// pid (comm) state ...: the command's name may hold anything, also ')'.
		i := strings.LastIndexByte(string(stat), ')')
		if err != nil || i < 0 || !strings.HasPrefix(string(stat[i:]), ") T") {
			return false
		}
	}
	return len(threads) > 0
}

// Resume lets a paused process go on (SIGCONT).
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		s.t.Fatalf("memcached on %s is not running", s.addr)
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal %v to memcached on %s: %v", sig, s.addr, err)
	}
}

func (s *Server) start() {
	s.t.Helper()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	// The server must not outlive a test binary that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		// Pdeathsig follows the thread that started the process, so this one
		// stays with it until the end.
		lockThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatalf("start %v: %v", s.args, err)
	}
	s.cmd, s.dead = cmd, dead
	for range 3000 {
		if c, err := net.Dial(s.Network(), s.addr); err == nil {
			c.Close()
			return
		}
		select {
		case <-dead:
			s.t.Fatalf("memcached ended at once: %v", s.args)
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.t.Fatalf("memcached does not listen on %s: %v", s.addr, s.args)
}

// String is for messages of tests.
func (s *Server) String() string { return fmt.Sprintf("memcached on %s", s.addr) }
