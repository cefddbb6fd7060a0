package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

// server is a private memcached on a TCP port of this machine.
type server struct {
	addr  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when it was waited for
}

// startTime is how long a server may take to answer.
const startTime = 30 * time.Second

// startServer starts a memcached with room for so many bytes of blocks, as the
// documentation tells users to start theirs.
func startServer(ctx context.Context, s *scratch.Place, bytes int64) (*server, error) {
	if _, err := exec.LookPath("memcached"); err != nil {
		return nil, errors.New("memcached is not installed: install it, or name a store with --store")
	}
	var last error
	for range 5 { // another program may take the port in between
		srv, err := tryServer(ctx, s, bytes)
		if err == nil || ctx.Err() != nil {
			return srv, err
		}
		last = err
	}
	return nil, last
}

func tryServer(ctx context.Context, s *scratch.Place, bytes int64) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	// An item is 2 % larger than its block; the rest is hash table and slack.
	mb := bytes>>20 + bytes>>20/16 + 64
	args := []string{"memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-m", strconv.FormatInt(mb, 10),
		"-M", "-F", "-t", "4", "-R", "128", "-c", "4096", "-o", "slab_sizes=96-192-4176-4240-8352,slab_automove=0"}
	if os.Geteuid() == 0 {
		args = append(args, "-u", "root")
	}
	srv := &server{addr: "127.0.0.1:" + port, ended: make(chan struct{})}
	// Not bound to ctx: the servers end after the mounts.
	srv.cmd = s.Command(context.WithoutCancel(ctx), args...)
	if err := srv.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = srv.cmd.Wait(); close(srv.ended) }()
	for end := time.Now().Add(startTime); time.Now().Before(end); {
		if _, err := srv.ask("version"); err == nil {
			return srv, nil
		}
		select {
		case <-srv.ended:
			return nil, errors.New("the private memcached ended at once")
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil, errors.New("the private memcached does not answer")
}

// storeURL names servers as --store takes them.
func storeURL(servers ...*server) string {
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.addr)
	}
	return "memcached://" + strings.Join(addrs, ",")
}

// ask sends one command and returns the first line of the reply.
func (s *server) ask(command string) (string, error) {
	c, err := net.DialTimeout("tcp", s.addr, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(c, "%s\r\n", command); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// pause stops the server's process: connections stay, nothing answers. It returns
// when all threads have stopped.
func (s *server) pause(ctx context.Context) error {
	pid := s.cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stopping memcached %s: %w", s.addr, err)
	}
	for end := time.Now().Add(startTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		// The state follows the name, which may hold anything, in brackets.
		if i := strings.LastIndexByte(string(text), ')'); i >= 0 && strings.HasPrefix(string(text[i:]), ") T") {
			return nil
		}
	}
	return fmt.Errorf("memcached %s does not stop", s.addr)
}

// resume lets a paused server go on.
func (s *server) resume() { _ = syscall.Kill(s.cmd.Process.Pid, syscall.SIGCONT) }

// stop ends the server; what it held is gone.
func (s *server) stop() {
	_ = s.cmd.Process.Kill() // also ends a paused one
	<-s.ended
}
