package rig

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// Memcached is a private server. Its address stays the same over restarts.
type Memcached struct {
	r    *Rig
	Addr string // host:port, or the path of a unix socket
	args []string
	cmd  *exec.Cmd
}

// Memcached starts a server of mb megabytes on a unix socket, with the settings
// that kvbfs recommends, and more arguments.
func (r *Rig) Memcached(mb int, more ...string) *Memcached {
	r.T.Helper()
	Require(r.T, "memcached")
	m := &Memcached{r: r, Addr: r.unique("memcached", ".sock")}
	m.args = append(memcachedArgs(mb), "-s", m.Addr, "-a", "0600")
	m.args = append(m.args, more...)
	m.Start()
	return m
}

// Careless starts a server on a unix socket with these settings and none of
// those that kvbfs recommends.
func (r *Rig) Careless(args ...string) *Memcached {
	r.T.Helper()
	Require(r.T, "memcached")
	m := &Memcached{r: r, Addr: r.unique("memcached", ".sock")}
	m.args = append(asUser("-s", m.Addr), args...)
	m.Start()
	return m
}

// MemcachedTCP starts a server on a free port of 127.0.0.1.
func (r *Rig) MemcachedTCP(mb int, more ...string) *Memcached {
	r.T.Helper()
	Require(r.T, "memcached")
	port := strconv.Itoa(storetest.FreePort(r.T, 0))
	m := &Memcached{r: r, Addr: net.JoinHostPort("127.0.0.1", port)}
	m.args = append(memcachedArgs(mb), "-l", "127.0.0.1", "-p", port)
	m.args = append(m.args, more...)
	m.Start()
	return m
}

// Flushable starts a server on a unix socket that is as kvbfs recommends, but
// lets anybody empty it by flush_all.
func (r *Rig) Flushable(mb int) *Memcached {
	r.T.Helper()
	Require(r.T, "memcached")
	m := &Memcached{r: r, Addr: r.unique("memcached", ".sock")}
	m.args = slices.DeleteFunc(memcachedArgs(mb), func(a string) bool { return a == "-F" })
	m.args = append(m.args, "-s", m.Addr, "-a", "0600")
	m.Start()
	return m
}

// Item is one item as it is stored.
type Item struct {
	Flags string
	Data  []byte
}

// Item reads an item; it fails the test if there is none.
func (m *Memcached) Item(key string) Item {
	m.r.T.Helper()
	c, rd := m.dial()
	defer c.Close()
	fmt.Fprintf(c, "get %s\r\n", key)
	line, err := rd.ReadString('\n')
	f := strings.Fields(line) // VALUE key flags length
	if err != nil || len(f) != 4 {
		m.r.T.Fatalf("memcached get %s: %q, %v", key, line, err)
	}
	n, _ := strconv.Atoi(f[3])
	it := Item{Flags: f[2], Data: make([]byte, n)}
	if _, err := io.ReadFull(rd, it.Data); err != nil {
		m.r.T.Fatalf("memcached get %s: %v", key, err)
	}
	return it
}

// SetItem stores an item behind kvbfs's back.
func (m *Memcached) SetItem(key string, it Item) {
	m.r.T.Helper()
	c, rd := m.dial()
	defer c.Close()
	fmt.Fprintf(c, "set %s %s 0 %d\r\n%s\r\n", key, it.Flags, len(it.Data), it.Data)
	if line, err := rd.ReadString('\n'); err != nil || line != "STORED\r\n" {
		m.r.T.Fatalf("memcached set %s: %q, %v", key, line, err)
	}
}

func (m *Memcached) dial() (net.Conn, *bufio.Reader) {
	m.r.T.Helper()
	network := "tcp"
	if strings.HasPrefix(m.Addr, "/") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, m.Addr, time.Second)
	if err != nil {
		m.r.T.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c, bufio.NewReader(c)
}

func memcachedArgs(mb int) []string {
	return asUser(append([]string{"-m", strconv.Itoa(mb)}, memcachedtest.StartLine...)...)
}

// asUser adds what memcached asks of root.
func asUser(args ...string) []string {
	if os.Geteuid() == 0 {
		args = append(args, "-u", "root")
	}
	return args
}

func (r *Rig) unique(stem, ext string) string {
	for i := 0; ; i++ {
		p := r.Path(fmt.Sprintf("%s%d%s", stem, i, ext))
		if _, err := os.Lstat(p); err != nil {
			return p
		}
	}
}

// URL is the store's URL.
func (m *Memcached) URL() string {
	if strings.HasPrefix(m.Addr, "/") {
		return "memcached+unix://" + m.Addr
	}
	return "memcached://" + m.Addr
}

// PID of the server.
func (m *Memcached) PID() int { return m.cmd.Process.Pid }

// Start starts a stopped server, empty, and waits until it answers.
func (m *Memcached) Start() {
	m.r.T.Helper()
	if strings.HasPrefix(m.Addr, "/") {
		os.Remove(m.Addr)
	}
	log := m.r.Path("memcached.log")
	m.cmd = m.r.Start(Cmd{Args: append([]string{"memcached"}, m.args...), Log: log})
	m.r.mu.Lock()
	if m.r.servers == nil {
		m.r.servers = map[int]bool{}
	}
	m.r.servers[m.PID()] = true
	m.r.mu.Unlock()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, err := m.ask("version")
		if err == nil {
			return
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(log)
			m.r.T.Fatalf("memcached %v does not answer: %v\nit said: %s", m.args, err, said)
		}
	}
}

// Kill ends the server: its data is lost.
func (m *Memcached) Kill() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

// Stop and Continue freeze the server and let it go on.
func (m *Memcached) Stop() {
	m.r.T.Helper()
	Stop(m.r.T, m.PID())
}

// Freeze is Stop without waiting for it, for other goroutines than the test's.
func (m *Memcached) Freeze() { syscall.Kill(m.PID(), syscall.SIGSTOP) }

// Continue undoes Stop.
func (m *Memcached) Continue() { syscall.Kill(m.PID(), syscall.SIGCONT) }

// Ask sends one command and returns the lines of the reply, without END.
func (m *Memcached) Ask(command string) []string {
	m.r.T.Helper()
	lines, err := m.ask(command)
	if err != nil {
		m.r.T.Fatalf("memcached %s: %v", command, err)
	}
	return lines
}

func (m *Memcached) ask(command string) ([]string, error) {
	network := "tcp"
	if strings.HasPrefix(m.Addr, "/") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, m.Addr, time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "%s\r\n", command); err != nil {
		return nil, err
	}
	many := strings.HasPrefix(command, "stats") || strings.HasPrefix(command, "get")
	var lines []string
	rd := bufio.NewReader(c)
	for {
		line, err := rd.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "END" {
			return lines, nil
		}
		lines = append(lines, line)
		if !many {
			return lines, nil
		}
	}
}

// Stat returns one number of `stats`.
func (m *Memcached) Stat(name string) int64 {
	m.r.T.Helper()
	for _, line := range m.Ask("stats") {
		if f := strings.Fields(line); len(f) == 3 && f[1] == name {
			n, err := strconv.ParseInt(f[2], 10, 64)
			if err != nil {
				m.r.T.Fatalf("memcached stats %s: %v", name, err)
			}
			return n
		}
	}
	m.r.T.Fatalf("memcached has no stat %s", name)
	return 0
}

// Delete deletes one key and says whether it was there.
func (m *Memcached) Delete(key string) bool {
	m.r.T.Helper()
	reply := m.Ask("delete " + key)
	return len(reply) == 1 && reply[0] == "DELETED"
}
