package storetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// FreePort returns a TCP port of 127.0.0.1 on which nobody listens, nor on the one gap
// above it (a node of a Redis Cluster has a second port 10000 above its own); gap 0 is
// for one port.
//
// It is below the ports that the kernel takes for outgoing connections (32768 on, see
// ip_local_port_range): one of those that is free now may be the local end of any
// connection a moment later, and for the minute of TIME_WAIT afterwards; a server
// that is stopped for a while and started again could then not listen.
func FreePort(t testing.TB, gap int) int {
	t.Helper()
	for range 1000 {
		port := 12000 + rand.IntN(32000-12000-gap)
		if free(port) && (gap == 0 || free(port+gap)) {
			return port
		}
	}
	t.Fatal("no free TCP port between 12000 and 32000")
	return 0
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
