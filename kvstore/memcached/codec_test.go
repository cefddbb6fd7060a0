package memcached

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

func TestKeyCodec(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range []kvstore.Key{
		{}, {Layer: 1}, {Number: 1}, {Kind: 1}, {Layer: 1<<32 - 1, Kind: 255, Number: kvstore.MaxNumber},
		{Layer: 0xabcd1234, Kind: kvstore.KindMap, Number: 99},
	} {
		text := keyText(k)
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(text) != keyLen || kvstore.ParseKey(raw) != k {
			t.Errorf("%v is spelled %q", k, text)
		}
		if seen[text] || strings.Contains(text, ":") {
			t.Errorf("%v: %q is not unique", k, text)
		}
		seen[text] = true
		if f := fmt.Sprint(blockFlags(1, k, make([]byte, kvstore.BlockSize))); len(f) != 10 {
			t.Errorf("flags %s have %d digits", f, len(f))
		}
	}
	if n := len(appendBallastKey(nil, ballastItems-1)); n > 17 {
		t.Errorf("ballast key of %d bytes leaves the slab class of the blocks", n)
	}
	if itemSize > 4176 {
		t.Errorf("a block takes %d bytes and misses its slab class", itemSize)
	}
}

func TestControlKeysDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a", ":a", "::a", "a:", "a:b", ":a:b", ":"} {
		k, ok := controlKey(name)
		if !ok || !strings.Contains(k, ":") {
			t.Errorf("%q gives %q", name, k)
		}
		if other, twice := seen[k]; twice {
			t.Errorf("%q and %q both give %q", name, other, k)
		}
		seen[k] = name
	}
	for _, bad := range []string{"", "a b:", "a\n:", "\x7f:", strings.Repeat("x:", 126)} {
		if k, ok := controlKey(bad); ok {
			t.Errorf("%q gives %q", bad, k)
		}
	}
}

func TestParseURL(t *testing.T) {
	for _, c := range []struct{ raw, servers, pool, masked string }{
		{"memcached://a", "a:11211", "", "memcached://a:11211"},
		{"memcached://a/", "a:11211", "", "memcached://a:11211"},
		{"memcached://a:1,b,[::1]:3,[fe80::1%25eth0]/p", "", "", ""},
		{"memcached://a:1,b,[::1]:3,[::2]/p1", "a:1 b:11211 [::1]:3 [::2]:11211", "p1", "memcached://a:1,b:11211,[::1]:3,[::2]:11211/p1"},
		{"memcached+unix:///run/m.sock", "/run/m.sock", "", "memcached+unix:///run/m.sock"},
		{"memcached+unix:///run/m.sock,/x?pool=q", "/run/m.sock /x", "q", "memcached+unix:///run/m.sock,/x?pool=q"},
		{"memcached://", "", "", ""}, {"memcached://a,,b", "", "", ""}, {"memcached://a,a", "", "", ""},
		{"memcached://a:0", "", "", ""}, {"memcached://a:99999", "", "", ""}, {"memcached://a:x", "", "", ""},
		{"memcached://::1", "", "", ""}, {"memcached://[::1", "", "", ""}, {"memcached://[a]", "", "", ""},
		{"memcached://u:p@a", "", "", ""}, {"memcached://a/b/c", "", "", ""}, {"memcached://a?pool=x", "", "", ""},
		{"memcached://a b", "", "", ""}, {"memcached://:11211", "", "", ""}, {"redis://a", "", "", ""}, {"a", "", "", ""},
		{"memcached+unix://run/m.sock", "", "", ""}, {"memcached+unix://", "", "", ""}, {"memcached+unix:///a?x=1", "", "", ""},
		{"memcached+unix:///a?pool=.x", "", "", ""}, {"memcached+unix:///" + strings.Repeat("x", 107), "", "", ""},
		{"memcached+unix:///a/", "", "", ""}, {"memcached://a#x", "", "", ""},
	} {
		cfg, pool, masked, err := ParseURL(c.raw)
		if c.servers == "" {
			if err == nil && !strings.Contains(c.raw, "fe80") {
				t.Errorf("%q was taken: %v", c.raw, cfg.Servers)
			}
			continue
		}
		if err != nil || strings.Join(cfg.Servers, " ") != c.servers || pool != c.pool || masked != c.masked {
			t.Errorf("%q: %v, pool %q, masked %q, %v", c.raw, cfg.Servers, pool, masked, err)
			continue
		}
		if again, _, m2, err := ParseURL(masked); err != nil || m2 != masked || len(again.Servers) != len(cfg.Servers) {
			t.Errorf("masked URL %q is not stable: %q, %v", masked, m2, err)
		}
	}
}

// FuzzReply feeds anything to the reply parser, whole and in growing pieces: it
// must not panic, not consume what it was not given, and decide the same.
func FuzzReply(f *testing.F) {
	flags := blockFlags(7, key(1), block(1))
	whole := fmt.Sprintf("VALUE %s %d 4096\r\n%s\r\nEND\r\n", keyText(key(1)), flags, block(1))
	f.Add(uint8(stepGet), false, []byte(whole))
	f.Add(uint8(stepGet), true, []byte(whole))
	f.Add(uint8(stepGets), false, []byte(strings.Replace(whole, " 4096\r", " 4096 77\r", 1)))
	const longest = 3 * kvstore.BlockSize // more teaches nothing, and is copied for each execution
	for _, g := range garbage {
		if len(g) < longest {
			f.Add(uint8(stepGet), true, []byte(strings.ReplaceAll(g, "KEY", keyText(key(1)))))
		}
	}
	for _, line := range []string{"STORED", "NOT_STORED", "EXISTS", "NOT_FOUND", "DELETED", "END", "SERVER_ERROR out of memory storing object"} {
		for s := stepGet; s <= stepBallast; s++ {
			f.Add(uint8(s), false, []byte(line+"\r\n"))
		}
	}
	srv := &server{sentinelKey: "a:b", sentinelValue: []byte("value")}
	op, r, next := read(1), new(request), new(request) // shared: to make them takes longer than to use them
	group := []*request{r, next}
	f.Fuzz(func(t *testing.T, s uint8, more bool, in []byte) {
		if len(in) > longest {
			return
		}
		clear(op.Data)
		begin := func() {
			r.begin(op, srv)
			r.step = step(s % uint8(stepBallast+1))
			r.more = more && (r.step == stepGet || r.step == stepGets)
			next.begin(op, srv)
		}
		begin()
		n, done, result, bad := r.accept(in, group)
		if n < 0 || n > len(in) || (result != nil && !done) {
			t.Fatalf("consumed %d of %d, done %v, result %v", n, len(in), done, result)
		}
		if done && result == nil && bad == nil && r.step == stepGet {
			if !bytes.Contains(in[:n], op.Data) {
				t.Fatal("a block that was not in the reply")
			}
		}
		// A prefix either is incomplete or gives the same answer.
		for _, cut := range []int{len(in) / 2, len(in) - 1} {
			if cut < 0 || n == 0 || cut >= n {
				continue
			}
			begin()
			if n2, done2, _, bad2 := r.accept(in[:cut], group); n2 != 0 || done2 || (bad2 != nil) != (bad != nil && n2 == 0) {
				if bad == nil {
					t.Fatalf("%d of %d bytes: consumed %d, done %v, bad %v", cut, n, n2, done2, bad2)
				}
			}
		}
	})
}
