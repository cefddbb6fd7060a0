package memcached

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// secured starts a server that wants TLS, a client certificate and a password, and
// returns the configuration that satisfies it.
func secured(t testing.TB, opts ...memcachedtest.Option) (*memcachedtest.Server, Config) {
	t.Helper()
	certs := memcachedtest.NewCerts(t)
	opts = append(opts, memcachedtest.TCP(), memcachedtest.TLS(certs), memcachedtest.Args("-Y", authFile(t)))
	return memcachedtest.Start(t, opts...), Config{TLS: certs.Config(t, true), Auth: &Auth{"alice", "s3cretword"}}
}

func authFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth")
	if err := os.WriteFile(path, []byte("alice:s3cretword\nbob:other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSecuredConformance: the whole contract over TLS with client certificates and
// a password.
func TestSecuredConformance(t *testing.T) {
	storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
		certs := memcachedtest.NewCerts(t)
		opts := []memcachedtest.Option{memcachedtest.TCP(), memcachedtest.TLS(certs), memcachedtest.Args("-Y", authFile(t))}
		if c.CapacityBlocks > 0 {
			opts = append(opts, memcachedtest.MemoryMB(max(4, 3+c.CapacityBlocks/251)))
		}
		cfg := Config{TLS: certs.Config(t, true), Auth: &Auth{"alice", "s3cretword"}}
		var servers []*memcachedtest.Server
		for range c.Servers {
			s := memcachedtest.Start(t, opts...)
			servers = append(servers, s)
			cfg.Servers = append(cfg.Servers, s.Addr())
		}
		s, err := Open(bg(t), cfg)
		want(t, err, nil)
		return storetest.Rig{
			Store:     s,
			Empty:     func(n int) { servers[n].Restart() },
			Allocates: "crypto/tls does",
		}
	})
}

// TestNoTrust: whoever is not who it must be gets nothing, in neither direction, and
// nothing is sent in the clear.
func TestNoTrust(t *testing.T) {
	server, good := secured(t)
	certs := memcachedtest.NewCerts(t) // of another authority
	plain := memcachedtest.Start(t, memcachedtest.TCP())
	for name, c := range map[string]struct {
		cfg    Config
		server *memcachedtest.Server
		err    error
	}{
		"all is well":           {good, server, kvstore.ErrAbsent},
		"another authority":     {Config{TLS: certs.Config(t, true), Auth: good.Auth}, server, ErrUntrusted},
		"another name":          {Config{TLS: withName(good.TLS, "elsewhere.test"), Auth: good.Auth}, server, ErrUntrusted},
		"the name as an option": {Config{TLS: withName(good.TLS, "kvbfs.test"), Auth: good.Auth}, server, kvstore.ErrAbsent},
		"no client certificate": {Config{TLS: &tls.Config{RootCAs: good.TLS.RootCAs, MinVersion: tls.VersionTLS12}, Auth: good.Auth}, server, kvstore.ErrUnreachable},
		"no password":           {Config{TLS: good.TLS}, server, ErrAuth},
		"a wrong password":      {Config{TLS: good.TLS, Auth: &Auth{"alice", "guess"}}, server, ErrAuth},
		"a wrong user":          {Config{TLS: good.TLS, Auth: &Auth{"eve", "s3cretword"}}, server, ErrAuth},
		"a server in the clear": {good, plain, ErrUntrusted},
		"we in the clear":       {Config{}, server, kvstore.ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := c.cfg
			cfg.Servers = []string{c.server.Addr()}
			cfg.TryTimeout = 20 * time.Second // of handshakes on a loaded machine: no case waits for it
			var book wiretest.Logbook
			cfg.Log = book.Log
			s, err := Open(bg(t), cfg)
			want(t, err, nil)
			defer s.Close()
			_, err = s.Control().Get(bg(t), 0, "kvbfs:none")
			want(t, err, c.err)
			want(t, s.Join(wiretest.Unproven{}), nil)
			ch := channelOf(t, s)
			ctx, cancel := context.WithTimeout(bg(t), 500*time.Millisecond)
			defer cancel()
			if c.err == kvstore.ErrAbsent {
				ctx = bg(t)
			}
			r := read(1)
			ch.Do(ctx, []*kvstore.Op{r})
			if c.err == kvstore.ErrAbsent {
				want(t, r.Err, kvstore.ErrAbsent)
			} else {
				want(t, r.Err, kvstore.ErrTimeout)
			}
			for _, text := range append(book.Lines(), fmt.Sprint(err, r.Err, cfg.Auth), fmt.Sprintf("%+v %#v", cfg.Auth, cfg.Auth)) {
				if strings.Contains(text, "s3cret") || strings.Contains(text, "guess") {
					t.Errorf("the password is shown: %s", text)
				}
			}
		})
	}
}

func withName(cfg *tls.Config, name string) *tls.Config {
	cfg = cfg.Clone()
	cfg.ServerName = name
	return cfg
}

// TestServerWithoutPassword: a server that was started without -Y would keep the password
// as an item, and serve everybody. It is not told, in no way of reaching it.
func TestServerWithoutPassword(t *testing.T) {
	certs := memcachedtest.NewCerts(t)
	for name, c := range map[string]struct {
		opts []memcachedtest.Option
		tls  *tls.Config
	}{
		"unix": {nil, nil},
		"tcp":  {[]memcachedtest.Option{memcachedtest.TCP()}, nil},
		"tls":  {[]memcachedtest.Option{memcachedtest.TCP(), memcachedtest.TLS(certs)}, certs.Config(t, true)},
	} {
		t.Run(name, func(t *testing.T) {
			server := memcachedtest.Start(t, c.opts...)
			s := openUnproven(t, Config{TLS: c.tls, Auth: &Auth{"alice", "s3cretword"}}, server.Addr())
			_, err := s.Inspect(bg(t))
			want(t, err, ErrUnprotected)
			_, err = s.Control().Get(bg(t), 0, "kvbfs:none")
			want(t, err, ErrUnprotected)
			ctx, cancel := context.WithTimeout(bg(t), 500*time.Millisecond)
			defer cancel()
			w := write(1, kvstore.Any, block(1))
			channelOf(t, s).Do(ctx, []*kvstore.Op{w})
			want(t, w.Err, kvstore.ErrTimeout)
			_, err = openAt(t, Config{TLS: c.tls}, server.Addr()).servers[0].client.Get("auth")
			want(t, err, memcache.ErrCacheMiss)
		})
	}
}

// TestNothingInTheClear: what crosses the wire under memcached+tls is not readable.
func TestNothingInTheClear(t *testing.T) {
	server, cfg := secured(t)
	var seen wiretap
	addr := tapped(t, server, &seen)
	cfg.Servers = []string{addr}
	s, err := Open(bg(t), cfg)
	want(t, err, nil)
	t.Cleanup(func() { s.Close() })
	want(t, s.Join(wiretest.Unproven{}), nil)
	ch := channelOf(t, s)
	data := bytes.Repeat([]byte("readable"), kvstore.BlockSize/8)
	want(t, do1(t, ch, write(1, kvstore.Any, data)), nil)
	wantBlock(t, ch, 1, data)
	want(t, s.Control().Add(bg(t), 0, "kvbfs:record", []byte("readable")), nil)
	wire := seen.bytes()
	if len(wire) < 2*kvstore.BlockSize {
		t.Fatalf("the wiretap saw %d bytes only", len(wire))
	}
	for _, word := range []string{"readable", "s3cret", "alice", "kvbfs:record", keyText(key(1))} {
		if bytes.Contains(wire, []byte(word)) {
			t.Errorf("%q crossed the wire in the clear", word)
		}
	}
}

// TestSecuredServerIsWaitedFor: an outage under TLS is an outage as any other, with
// batches in both directions that are larger than every buffer.
func TestSecuredServerIsWaitedFor(t *testing.T) {
	server, cfg := secured(t)
	cfg.TryTimeout = 500 * time.Millisecond
	s := open(t, cfg, server)
	ch := channelOf(t, s)
	const n = 1024
	ops := make([]*kvstore.Op, n)
	for i := range ops {
		ops[i] = write(uint64(i), kvstore.Any, block(uint64(i)))
	}
	server.Pause()
	time.AfterFunc(1500*time.Millisecond, server.Resume)
	ch.Do(bg(t), ops)
	for i := range ops {
		want(t, ops[i].Err, nil)
		ops[i] = read(uint64(i))
	}
	ch.Do(bg(t), ops)
	for i, op := range ops {
		want(t, op.Err, nil)
		if !bytes.Equal(op.Data, block(uint64(i))) {
			t.Fatalf("block %d differs", i)
		}
	}
	// The dial is given up in the middle of the handshake.
	server.Pause()
	defer server.Resume()
	other := channelOf(t, s)
	ctx, cancel := context.WithTimeout(bg(t), 300*time.Millisecond)
	defer cancel()
	r := read(1)
	other.Do(ctx, []*kvstore.Op{r})
	want(t, r.Err, kvstore.ErrTimeout)
}

// TestSecuredGhost: TestGhost over TLS.
func TestSecuredGhost(t *testing.T) {
	server, cfg := secured(t)
	s := open(t, cfg, server)
	first, second := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, first, write(1, kvstore.Any, block(1))), nil)
	want(t, do1(t, second, read(1)), nil)
	for i := range uint64(4) {
		server.Pause()
		ctx, cancel := context.WithTimeout(bg(t), 20*time.Millisecond)
		w := write(1, kvstore.Present, block(100+i))
		first.Do(ctx, []*kvstore.Op{w})
		cancel()
		want(t, w.Err, kvstore.ErrTimeout)
		server.Resume()
		want(t, do1(t, second, write(1, kvstore.Present, block(200+i))), nil)
		for range 20 {
			wantBlock(t, second, 1, block(200+i))
		}
	}
}

func TestParseAuth(t *testing.T) {
	for line, want := range map[string]*Auth{
		"alice:s3cret":            {"alice", "s3cret"},
		"alice:a:b":               {"alice", "a:b"},
		"alice:a b":               nil,
		"alice":                   nil,
		":x":                      nil,
		"alice:":                  nil,
		"al ice:x":                nil,
		"alice:x\r":               nil,
		strings.Repeat("x:", 300): nil,
	} {
		got, err := ParseAuth(line)
		if (got == nil) != (want == nil) || got != nil && *got != *want || (err == nil) != (want != nil) {
			t.Errorf("ParseAuth(%q): %v, %v; want %v", line, got, err, want)
		}
	}
	text, err := Auth{"alice", "s3cret"}.MarshalText()
	if string(text) != "alice:***" || err != nil {
		t.Errorf("as text: %q, %v", text, err)
	}
}

func TestTLSNeedsTCP(t *testing.T) {
	_, err := Open(bg(t), Config{Servers: []string{"/run/x.sock"}, TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
	want(t, err, kvstore.ErrInvalid)
	_, _, _, err = ParseURL("memcached+tls:///run/x.sock")
	if err == nil {
		t.Error("a socket's path passed for a host")
	}
}

// tapped relays a server's TCP address and shows what passes.
func tapped(t testing.TB, server *memcachedtest.Server, seen *wiretap) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	want(t, err, nil)
	relayTCP(t, l, server.Addr(), seen)
	return l.Addr().String()
}

// BenchmarkSecured is what TLS and a password cost: batches of 32 writes and 32 reads
// over TCP, in the clear and not.
func BenchmarkSecured(b *testing.B) {
	for _, name := range []string{"plain", "tls"} {
		b.Run(name, func(b *testing.B) {
			var server *memcachedtest.Server
			var cfg Config
			if name == "tls" {
				server, cfg = secured(b)
			} else {
				server = memcachedtest.Start(b, memcachedtest.TCP())
			}
			s := open(b, cfg, server)
			ch := channelOf(b, s)
			var writes, reads []*kvstore.Op
			for n := range uint64(32) {
				writes, reads = append(writes, write(n, kvstore.Any, block(n))), append(reads, read(n))
			}
			b.SetBytes(64 * kvstore.BlockSize)
			for b.Loop() {
				ch.Do(context.Background(), writes)
				ch.Do(context.Background(), reads)
			}
			for i := range writes {
				want(b, writes[i].Err, nil)
				want(b, reads[i].Err, nil)
			}
		})
	}
}

// TestGivenUpHandshake: a dial of the control plane may be given up at any moment of the
// handshake and what follows it (for the race detector).
func TestGivenUpHandshake(t *testing.T) {
	server, cfg := secured(t)
	s := openUnproven(t, cfg, server.Addr())
	for i := range 200 {
		ctx, cancel := context.WithCancel(bg(t))
		time.AfterFunc(time.Duration(i)*100*time.Microsecond, cancel)
		if c, err := s.servers[0].dial(ctx); err == nil {
			c.Close()
		}
		cancel()
	}
}
