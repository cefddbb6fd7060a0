// Package redistest starts private Redis servers for tests: on a unix socket in a
// temporary directory or on free TCP ports of 127.0.0.1, alone, watched by a
// Sentinel, or as a cluster. They are killed by process id when the test ends,
// however it ends.
package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// Server is one private redis-server. Its methods belong to the test's goroutine.
type Server struct {
	t    testing.TB
	args []string
	addr string
	dir  string
	cmd  *exec.Cmd
	dead chan struct{} // closed when cmd was waited for
	// Client talks to this very server.
	Client *goredis.Client
}

type config struct {
	tcp      bool
	host     string
	megs     int
	policy   string
	sentinel bool
	extra    []string
}

// Option changes how a server is started.
type Option func(*config)

// TCP lets the server listen on a free port of 127.0.0.1 and not on a socket.
func TCP() Option { return func(c *config) { c.tcp = true } }

// IPv6 is TCP on ::1. Where the machine has no such address the test is skipped.
func IPv6(t testing.TB) Option {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 on this machine: %v", err)
	}
	_ = l.Close()
	return func(c *config) { c.tcp, c.host = true, "::1" }
}

// MemoryMB sets maxmemory; the default is 256.
func MemoryMB(n int) Option { return func(c *config) { c.megs = n } }

// Args adds arguments: "--appendonly", "yes".
func Args(args ...string) Option { return func(c *config) { c.extra = append(c.extra, args...) } }

// Careless leaves away what kvbfs asks for: evictions are on.
func Careless() Option { return func(c *config) { c.policy = "allkeys-lru" } }

// Log switches the append-only file on, with this fsync policy.
func Log(fsync string) Option { return Args("--appendonly", "yes", "--appendfsync", fsync) }

// Binary returns the path of redis-server. Where it is not installed the test is
// skipped, but fails if the environment has CI=true.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed, and CI=true must not skip")
		}
		t.Skip("redis-server is not installed")
	}
	return bin
}

// Start starts a server and stops it when the test ends.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := Binary(t)
	c := config{megs: 256, policy: "noeviction", host: "127.0.0.1"}
	for _, o := range opts {
		o(&c)
	}
	// Not t.TempDir: its path holds the test's name, and a socket's path is limited
	// to 107 bytes.
	dir, err := os.MkdirTemp("", "rd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{t: t, dir: dir}
	s.args = []string{bin}
	if c.sentinel {
		s.args = append(s.args, filepath.Join(dir, "sentinel.conf"), "--sentinel")
	}
	s.args = append(s.args, "--dir", dir, "--daemonize", "no")
	if !c.sentinel {
		s.args = append(s.args, "--save", "", "--maxmemory", strconv.Itoa(c.megs)+"mb", "--maxmemory-policy", c.policy, "--enable-debug-command", "yes")
	}
	options := &goredis.Options{Protocol: 2, DisableIdentity: true}
	if c.tcp {
		port := storetest.FreePort(t, 10000)
		s.addr = net.JoinHostPort(c.host, strconv.Itoa(port))
		s.args = append(s.args, "--bind", c.host, "--port", strconv.Itoa(port))
	} else {
		s.addr = filepath.Join(dir, "s")
		s.args = append(s.args, "--port", "0", "--unixsocket", s.addr)
		options.Network = "unix"
	}
	s.args = append(s.args, c.extra...)
	options.Addr = s.addr
	s.Client = goredis.NewClient(options)
	t.Cleanup(func() {
		_ = s.Client.Close()
		s.Stop()
		if t.Failed() {
			t.Logf("redis on %s said last:\n%s", s.addr, s.said(40))
		}
	})
	if !c.sentinel {
		s.start()
	}
	return s
}

// Addr is the socket's path, or host:port.
func (s *Server) Addr() string { return s.addr }

// Host of a server on TCP.
func (s *Server) Host() string { h, _, _ := net.SplitHostPort(s.addr); return h }

// Port of a server on TCP.
func (s *Server) Port() string { _, p, _ := net.SplitHostPort(s.addr); return p }

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
		return "redis+unix://" + s.addr
	}
	return "redis://" + s.addr
}

// PID of the running server, 0 when stopped.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Stop kills the server; what it held is gone, but for its append-only file.
// Stopping twice does nothing.
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

// Restart kills the server and starts it again at the same address.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Logged waits until all that the server has acknowledged is in its log, as far as the
// kernel is concerned. With everysec Redis answers and does not write its log while an
// fsync is under way, for up to two seconds.
func (s *Server) Logged() {
	s.t.Helper()
	Eventually(s.t, s.addr+" has written its log", func() bool { return s.Info("persistence", "aof_buffer_length") == "0" })
}

// Synced takes the files of the server as they are now for what is on the disk of its
// machine. crash is the crash of that machine, which loses what was written since, and
// its start.
func (s *Server) Synced() (crash func()) {
	s.t.Helper()
	s.Logged()
	log, disk := filepath.Join(s.dir, "appendonlydir"), s.t.TempDir()
	if err := os.CopyFS(disk, os.DirFS(log)); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		s.Stop()
		err := os.RemoveAll(log)
		if err == nil {
			err = os.CopyFS(log, os.DirFS(disk))
		}
		if err != nil {
			s.t.Fatal(err)
		}
		s.start()
	}
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
	s.t.Fatalf("redis on %s does not stop", s.addr)
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
		s.t.Fatalf("redis on %s is not running", s.addr)
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("signal %v to redis on %s: %v", sig, s.addr, err)
	}
}

func (s *Server) start() {
	s.t.Helper()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// The server must not outlive a test binary that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		// Pdeathsig follows the thread that started the process, so this one
		// stays with it until the end.
		runtime.LockOSThread()
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
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if s.Client.Ping(context.Background()).Err() == nil {
			return
		}
		select {
		case <-dead:
			s.t.Fatalf("redis ended at once: %v\n%s", s.args, s.said(40))
		default:
		}
	}
	s.t.Fatalf("redis does not answer on %s: %v", s.addr, s.args)
}

// said returns the last lines that the server has logged, of all its starts.
func (s *Server) said(lines int) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	all := strings.SplitAfter(string(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// Do runs a command on this server; an error fails the test.
func (s *Server) Do(args ...any) any {
	s.t.Helper()
	v, err := s.Client.Do(context.Background(), args...).Result()
	if err != nil {
		s.t.Fatalf("redis %s: %v: %v", s.addr, args, err)
	}
	return v
}

// Info returns one line of INFO.
func (s *Server) Info(section, name string) string {
	s.t.Helper()
	text, err := s.Client.Info(context.Background(), section).Result()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return v
		}
	}
	return ""
}

// Replicated waits until each replica has confirmed all that this master has executed
// so far. (WAIT would not do: it waits for the writes of the connection that it comes
// on, and those of a test came on others.)
func (s *Server) Replicated() {
	s.t.Helper()
	executed, err := strconv.ParseInt(s.Info("replication", "master_repl_offset"), 10, 64)
	if err != nil {
		s.t.Fatalf("redis %s: its offset: %v", s.addr, err)
	}
	Eventually(s.t, "the replicas of "+s.addr+" have what it has", func() bool {
		n, _ := strconv.Atoi(s.Info("replication", "connected_slaves"))
		for i := range n {
			// ip=127.0.0.1,port=7003,state=online,offset=1234,lag=0
			_, rest, _ := strings.Cut(s.Info("replication", fmt.Sprintf("slave%d", i)), "offset=")
			digits, _, _ := strings.Cut(rest, ",")
			if offset, err := strconv.ParseInt(digits, 10, 64); err != nil || offset < executed {
				return false
			}
		}
		return n > 0
	})
}

// Eventually waits for a condition, for up to two minutes: Sentinels whose first vote
// was split try again after twenty seconds.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

// String is for messages of tests.
func (s *Server) String() string { return fmt.Sprintf("redis on %s", s.addr) }
