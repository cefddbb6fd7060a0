package redis

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// TestCommandsSpellTheirLengths: the constants that say a length agree with it.
func TestCommandsSpellTheirLengths(t *testing.T) {
	if want := fmt.Sprintf("$%d\r\n", valueSize); blockHead != want || dataHead != "\r\n"+want {
		t.Errorf("heads %q, %q do not say %d", blockHead, dataHead, valueSize)
	}
	if want := fmt.Sprintf("\r\n$%d\r\n", kvstore.BlockSize); blockArg != want {
		t.Errorf("%q, want %q", blockArg, want)
	}
	if !strings.HasSuffix(getHead, fmt.Sprintf("$%d\r\n", kvstore.KeySize)) {
		t.Errorf("%q does not say the key's length", getHead)
	}
}

// TestKeySlot compares with the specification of Redis Cluster.
func TestKeySlot(t *testing.T) {
	for key, slot := range map[string]int{
		"123456789": 0x31C3, "foo": 12182, "{user1000}.following": 3443, "user1000": 3443,
		"foo{}{bar}": 8363, "foo{{bar}}zap": 4015, "{bar": 4015, "foo{bar}{zap}": 5061, "bar": 5061,
	} {
		if got := keySlot(key); got != slot {
			t.Errorf("slot of %q is %d, want %d", key, got, slot)
		}
		if got := keySlot([]byte(key)); got != slot {
			t.Errorf("slot of %q as bytes is %d, want %d", key, got, slot)
		}
	}
	for slot, tag := range slotTags() {
		if got := keySlot(tagged("a:sentinel", slot)); got != slot {
			t.Errorf("tag %q is in slot %d, want %d", tag, got, slot)
		}
	}
	if got := keySlot(copyKey("a:sentinel", 3)); got != 3*copyEvery {
		t.Errorf("the third copy is in slot %d", got)
	}
}

func TestParseReplication(t *testing.T) {
	r := parseReplication([]byte("# Replication\r\nrole:master\r\nconnected_slaves:2\r\nmaster_replid:abc\r\nmaster_replid2:000\r\nmaster_repl_offset:77\r\nsecond_repl_offset:-1\r\n"))
	if want := (replication{role: "master", id: "abc", before: "000", offset: 77, branched: -1, replicas: 2}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
}

func TestReadClusterNodes(t *testing.T) {
	m := newClusterMap()
	asked := &node{addr: "10.0.0.1:7000"}
	m.read("a 10.0.0.1:7000@17000 myself,master - 0 0 3 connected 0-100 200 [93->-b] [101-<-b]\n"+
		"b 10.0.0.2:7001@17001,host master - 0 0 5 connected 100-101\n"+
		"c 10.0.0.3:7002@17002 slave b 0 0 5 connected\n"+
		"d :7003@17003 master - 0 0 9 connected 300\n"+
		"e 2001:db8::1:7004@17004 master,fail - 0 0 2 disconnected 400\n", asked)
	for slot, want := range map[int]string{
		0: "10.0.0.1:7000", 93: "10.0.0.1:7000", 100: "10.0.0.2:7001", 101: "10.0.0.2:7001", 200: "10.0.0.1:7000",
		102: "", 300: "", 400: "[2001:db8::1]:7004",
	} {
		if m.claims[slot].addr != want {
			t.Errorf("slot %d is at %q, want %q", slot, m.claims[slot].addr, want)
		}
	}
	own := m.own[asked]
	if len(m.own) != 1 || own.state[93] != slotMoves || own.to[93] != "10.0.0.2:7001" || own.state[94] != slotRests || own.state[101] != slotComes ||
		own.state[400] != slotElsewhere || m.hasLeft(101, asked, own) || !m.hasLeft(93, asked, own) ||
		m.aliases["host:7001"] != "10.0.0.2:7001" || !own.lives["10.0.0.2:7001"] || own.lives["[2001:db8::1]:7004"] {
		t.Errorf("of itself a node says %v, %v, %v; it moves %v; %d nodes said something", own.state[93], own.state[94], own.state[101], own.to, len(m.own))
	}
}

func TestHostPort(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1:7000": "10.0.0.1:7000", "host:7000": "host:7000", ":7000": "[fe80::9]:7000", "?:7000": "[fe80::9]:7000",
		"::1:7000": "[::1]:7000", "2001:db8::1:7000": "[2001:db8::1]:7000", "[::1]:7000": "[::1]:7000", "nothing": "nothing",
	} {
		if got := hostPort(addr, "[fe80::9]:1"); got != want {
			t.Errorf("%q is %q, want %q", addr, got, want)
		}
	}
}

// FuzzParseReply: no bytes lead to a panic, a reply is never longer than its bytes,
// and it is the same however it arrives.
func FuzzParseReply(f *testing.F) {
	const longest = maxLine + 1000 // more teaches nothing, and is copied for each execution
	for _, s := range garbage {
		if len(s) <= longest {
			f.Add([]byte(s))
		}
	}
	for _, s := range []string{"+OK\r\n", "$-1\r\n", "$3\r\nabc\r\n", ":-5\r\n", "*2\r\n:1\r\n:0\r\n", "-OOM command not allowed\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > longest {
			return
		}
		rep, n, err := parseReply(b, 1000)
		if n < 0 || n > len(b) || n > 0 && err != nil {
			t.Fatalf("%d of %d bytes, %v", n, len(b), err)
		}
		if n == 0 {
			return
		}
		for cut := range min(n, 40) {
			if _, k, err := parseReply(b[:cut], 1000); k != 0 || err != nil {
				t.Fatalf("%d of %d bytes of a reply are taken for %d, %v", cut, n, k, err)
			}
		}
		again, k, err := parseReply(b[:n], 1000)
		if k != n || err != nil || again.kind != rep.kind || !bytes.Equal(again.data, rep.data) {
			t.Fatalf("the reply alone is %d bytes, %v", k, err)
		}
		if rep.kind == replyError {
			classify(rep.line)
			redirection(rep.line)
		}
	})
}

// pieces is a link that gives bytes in pieces.
type pieces struct {
	data []byte
	cuts []byte // lengths of the pieces, in turn
}

func (p *pieces) send(iov []unix.Iovec) (n int, err error) {
	for i := range iov {
		n += int(iov[i].Len)
	}
	return n, nil
}
func (p *pieces) unsent() bool   { return false }
func (p *pieces) flush() error   { return nil }
func (p *pieces) buffered() bool { return false }
func (p *pieces) close()         {}

func (p *pieces) receive(iov []unix.Iovec, _, _ bool) (n int, err error) {
	limit := len(p.data)
	if len(p.cuts) > 0 {
		limit = min(limit, 1+int(p.cuts[0])*33)
		p.cuts = p.cuts[1:]
	}
	for i := range iov {
		k := copy(wire.Bytes(&iov[i]), p.data[:limit])
		p.data, limit, n = p.data[k:], limit-k, n+k
	}
	if n == 0 {
		return 0, unix.EAGAIN
	}
	return n, nil
}

// FuzzReceive: replies to reads, good, absent, foreign and of other lengths, come in
// any pieces: each operation gets what its reply says, wherever the guess of the
// layout failed.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 2, 0, 3, 0}, []byte{255, 1, 0, 7})
	f.Add([]byte{1, 1, 0, 0, 0, 0}, []byte{})
	f.Add([]byte{0, 0, 0, 0}, []byte{124, 124, 125, 1, 1, 1})
	f.Add(bytes.Repeat([]byte{0}, 70), bytes.Repeat([]byte{200, 3}, 9))
	// Shared by all executions: to make them takes longer than to use them.
	const most = 100
	in, requests, iov := make([]byte, bufferSize), make([]request, most), make([]unix.Iovec, 0, 2*maxScattered+2)
	var ops [most]*kvstore.Op
	var blocks, good [most][]byte
	for i := range ops {
		ops[i], blocks[i] = read(uint64(i)), block(uint64(i))
		good[i] = fmt.Appendf(nil, "$%d\r\n%s\r\n", valueSize, stored(ops[i].Key, ops[i].Seed, blocks[i]))
	}
	long := fmt.Appendf(nil, "$%d\r\n%s\r\n", 2*valueSize, bytes.Repeat([]byte("l"), 2*valueSize))
	room := make([]byte, 0, most*len(long))
	f.Fuzz(func(t *testing.T, kinds, cuts []byte) {
		if len(kinds) == 0 || len(kinds) > most {
			return
		}
		ops, sent := ops[:len(kinds)], room
		s := &Store{servers: []*server{{}}}
		n := &node{store: s}
		n.outage.Log = func(string, ...any) {}
		s.nodes.Store(&[]*node{n})
		ch := &channel{store: s, turn: []int{0}, per: 1}
		c := &conn{ch: ch, node: n, state: ready, in: in}
		c.scatter.iov = iov
		line := &pieces{cuts: cuts}
		c.link = line
		for i, kind := range kinds {
			op, r := ops[i], &requests[i]
			clear(op.Data)
			op.Err = kvstore.ErrPending
			r.begin(op, 1)
			r.node = n
			c.flight.Push(r)
			ch.pending++
			switch kind % 5 {
			case 0:
				sent = append(sent, good[i]...)
			case 1:
				sent = append(sent, "$-1\r\n"...)
			case 2:
				sent = append(sent, "$5\r\nshort\r\n"...)
			case 3:
				sent = append(sent, "-WRONGTYPE Operation against a key\r\n"...)
			case 4:
				sent = append(sent, long...)
			}
		}
		line.data = sent
		for c.receive(false) {
		}
		if ch.pending != 0 || c.r != c.w || len(line.data) != 0 {
			t.Fatalf("%d requests without an answer, %d bytes left", ch.pending, c.w-c.r+len(line.data))
		}
		for i, op := range ops {
			switch kinds[i] % 5 {
			case 0:
				want(t, op.Err, nil)
				if !bytes.Equal(op.Data, blocks[i]) {
					t.Fatalf("block %d has other data", i)
				}
			case 1:
				want(t, op.Err, kvstore.ErrAbsent)
			default:
				want(t, op.Err, kvstore.ErrCorrupt)
			}
		}
	})
}

func TestParseURL(t *testing.T) {
	for raw, text := range map[string]string{
		"redis://h":                                 "redis://h:6379",
		"redis://h:1,[::1]:2/3?pool=p":              "redis://h:1,[::1]:2/3?pool=p",
		"redis://ann@h/0?pool=default":              "redis://ann@h:6379",
		"rediss://h?ca=/a/b&name=x":                 "rediss://h:6379?ca=/a/b&name=x",
		"redis://h?tls=on":                          "rediss://h:6379",
		"redis+unix:///run/r.sock":                  "redis+unix:///run/r.sock",
		"redis+unix:///run//r.sock?db=2&pool=p":     "redis+unix:///run/r.sock?db=2&pool=p",
		"redis+sentinel://mine@a,b:9/1":             "redis+sentinel://mine@a:26379,b:9/1",
		"redis+sentinel://ann@mine@a":               "redis+sentinel://ann@mine@a:26379",
		"redis+cluster://a:1,b:2?pool=x&tls=on":     "redis+cluster://a:1,b:2?pool=x&tls=on",
		"redis://a:b@h":                             "",
		"redis://":                                  "",
		"redis://h/pool":                            "",
		"redis://h?pool=/x":                         "",
		"redis://h?db=1&db=2":                       "",
		"redis://h?x=1":                             "",
		"redis://h,h":                               "",
		"redis://h:0":                               "",
		"redis://h#x":                               "",
		"redis://h?ca=/x":                           "",
		"redis+sentinel://a":                        "",
		"redis+cluster://a/1":                       "",
		"redis+unix://run/r":                        "",
		"redis+unix:///" + strings.Repeat("x", 120): "",
		"redis:h":                                   "",
	} {
		l, err := ParseURL(raw)
		switch {
		case text == "" && err == nil:
			t.Errorf("%s is taken as %s", raw, l.Text)
		case text != "" && (err != nil || l.Text != text):
			t.Errorf("%s: %+v, %v, want %s", raw, l, err, text)
		case text != "":
			if again, err := ParseURL(l.Text); err != nil || again.Text != l.Text {
				t.Errorf("%s is not its own spelling: %v", l.Text, err)
			}
		}
	}
	if _, err := ParseURL("redis://ann:geheim@h"); err == nil || !strings.Contains(err.Error(), "KVBFS_REDIS_PASSWORD") {
		t.Errorf("a password in the URL: %v", err)
	}
}
