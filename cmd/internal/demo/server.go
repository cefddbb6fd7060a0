package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

// serverMB is the private memcached's memory: both volumes and room. It is taken
// only as it is used.
const serverMB = "512"

// server is a private memcached on a unix socket.
type server struct {
	socket string
	cmd    *exec.Cmd
}

func startMemcached(ctx context.Context, s *scratch.Place) (*server, error) {
	srv := &server{socket: s.Path("memcached.sock")}
	args := []string{"memcached", "-s", srv.socket, "-a", "0600", "-M", "-F", "-m", serverMB, "-t", "2", "-R", "128", "-c", "1024",
		"-o", "slab_sizes=96-192-4176-4240-8352,slab_automove=0"}
	if os.Geteuid() == 0 {
		args = append(args, "-u", "root")
	}
	// Not bound to ctx: the server ends after the mounts, by the sweep.
	srv.cmd = s.Command(context.WithoutCancel(ctx), args...)
	if err := srv.cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.cmd.Wait() }()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if _, err := srv.ask("version"); err == nil {
			return srv, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("memcached ended at once: %w", err)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil, errors.New("memcached does not answer")
}

func (s *server) url() string { return "memcached+unix://" + s.socket }
func (s *server) pid() int    { return s.cmd.Process.Pid }

// ask sends one command and returns the first line of the reply.
func (s *server) ask(command string) (string, error) {
	c, err := net.DialTimeout("unix", s.socket, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(c, "%s\r\n", command); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}
