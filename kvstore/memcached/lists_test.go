package memcached

import (
	"bufio"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

// TestListsOtherAddresses: a connection of this machine is found whatever address of it
// the server sees, and not only if it is the asker's own: one name may stand for several.
func TestListsOtherAddresses(t *testing.T) {
	server := memcachedtest.Start(t, memcachedtest.TCP())
	s := open(t, Config{}, server)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: 30 * time.Second}
	c, err := d.DialContext(t.Context(), "tcp", server.Addr())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no second loopback address, and CI=true must not skip: %v", err)
		}
		t.Skipf("no second loopback address: %v", err)
	}
	defer c.Close()
	// An answer: it has been accepted.
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = c.Write([]byte("version\r\n"))
	want(t, err, nil)
	_, err = bufio.NewReader(c).ReadString('\n')
	want(t, err, nil)
	port := c.LocalAddr().(*net.TCPAddr).Port
	listed, err := s.servers[0].lists(bg(t), map[int]bool{port: true})
	if listed != port || err != nil {
		t.Errorf("lists has %d, %v; want %d", listed, err, port)
	}
	if listed, err := s.servers[0].lists(bg(t), map[int]bool{1: true}); listed != 0 || err != nil {
		t.Errorf("a port that is not ours: %d, %v", listed, err)
	}
}

func TestClientAddress(t *testing.T) {
	for value, wanted := range map[string]string{
		"tcp:192.0.2.1:40000":           "192.0.2.1:40000",
		"tcp6:[2001:db8::1]:40000":      "[2001:db8::1]:40000",
		"tcp6:[::ffff:192.0.2.1]:40000": "192.0.2.1:40000",
		"unix:/tmp/s":                   "",
		"udp:0.0.0.0:99999":             "",
		"":                              "",
		"tcp":                           "",
		"tcp:[::1":                      "",
		"tcp6:[fe80::1%lo]:7":           "[fe80::1%lo]:7",
		"tcp:255.255.255.255.255:1":     "",
	} {
		got, ok := clientAddress(value)
		if wanted == "" {
			if ok {
				t.Errorf("%q is %v", value, got)
			}
			continue
		}
		if !ok || got != netip.MustParseAddrPort(wanted) {
			t.Errorf("%q is %v, %v; want %s", value, got, ok, wanted)
		}
	}
}
