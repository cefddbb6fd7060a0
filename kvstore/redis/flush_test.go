package redis

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// TestProofOutlivesTheMap: who proves himself by a slot that is elsewhere when his answer
// is looked at has not lost anything.
func TestProofOutlivesTheMap(t *testing.T) {
	s := &Store{cfg: Config{Mode: Cluster}, servers: []*server{{sentinelKey: "x:sentinel", sentinelValue: []byte("proof")}}}
	n, other := &node{store: s}, &node{store: s}
	s.slots[5*copyEvery].Store(n)
	r := &request{step: stepFlush, node: n}
	if sent := string(r.head(nil)); !strings.Contains(sent, copyKey("x:sentinel", 5)) {
		t.Fatalf("sent %q", sent)
	}
	s.slots[5*copyEvery].Store(other)
	if out, result, bad := r.accept(reply{kind: replyBulk, data: []byte("proof12345678")}); out != outMore || result != nil || bad != nil {
		t.Errorf("outcome %v, %v, %v", out, result, bad)
	}
}

// TestFlushReplies: what each sequence of replies to a flush means. WAITAOF is of Redis
// 7.2, which not every machine has: its replies are played here.
func TestFlushReplies(t *testing.T) {
	const info = "role:master\r\nmaster_replid:a\r\nmaster_repl_offset:9\r\n"
	bulk := func(s string) string { return command(1, s)[len("*1\r\n"):] }
	for name, c := range map[string]struct {
		cfg     Config
		replies string
		out     outcome
		want    error
		broken  bool
	}{
		"nothing to wait for": {Config{}, bulk("proof12345678") + bulk(info), outDone, nil, false},
		"sentinel gone":       {Config{}, "$-1\r\n", outDone, kvstore.ErrServerLost, true},
		"another sentinel":    {Config{}, bulk("other12345678"), outDone, kvstore.ErrServerLost, true},
		"a replica":           {Config{}, bulk("proof12345678") + bulk(strings.Replace(info, "master", "slave", 1)), outMore, nil, true},
		"another history":     {Config{}, bulk("proof12345678") + bulk(strings.Replace(info, "id:a", "id:b", 1)), outMore, nil, true},
		"a shorter history":   {Config{}, bulk("proof12345678") + bulk(strings.Replace(info, ":9", ":0", 1)), outMore, nil, true},
		"replicas":            {Config{WaitReplicas: 2}, bulk("proof12345678") + ":1\r\n:2\r\n" + bulk(info), outDone, nil, false},
		"too few replicas":    {Config{WaitReplicas: 2}, bulk("proof12345678") + ":1\r\n:1\r\n" + bulk(info), outLater, nil, false},
		"log":                 {Config{WaitAOF: true}, bulk("proof12345678") + ":1\r\n*2\r\n:1\r\n:0\r\n" + bulk(info), outDone, nil, false},
		"log not yet":         {Config{WaitAOF: true}, bulk("proof12345678") + ":1\r\n*2\r\n:0\r\n:0\r\n" + bulk(info), outLater, nil, false},
		"log and replicas":    {Config{WaitAOF: true, WaitReplicas: 1}, bulk("proof12345678") + ":1\r\n*2\r\n:1\r\n:1\r\n" + bulk(info), outDone, nil, false},
		"log, no replica":     {Config{WaitAOF: true, WaitReplicas: 1}, bulk("proof12345678") + ":1\r\n*2\r\n:1\r\n:0\r\n" + bulk(info), outLater, nil, false},
		"full":                {Config{WaitAOF: true}, bulk("proof12345678") + "-OOM no\r\n", outMore, nil, true},
		"a number for a list": {Config{WaitAOF: true}, bulk("proof12345678") + ":1\r\n:1\r\n", outDone, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Store{cfg: c.cfg, servers: []*server{{sentinelKey: "x:sentinel", sentinelValue: []byte("proof")}}}
			s.histories = histories{stable: map[string]int64{"a": 1}, of: map[*node]string{}}
			r := &request{step: stepFlush, node: &node{store: s}}
			s.histories.of[r.node] = "a"
			sent := string(r.head(nil))
			if strings.Contains(sent, "WAITAOF") != c.cfg.WaitAOF || strings.Contains(sent, "WAIT\r\n") != (c.cfg.WaitReplicas > 0 && !c.cfg.WaitAOF) {
				t.Errorf("sent %q", sent)
			}
			in := []byte(c.replies)
			for {
				rep, n, err := parseReply(in, 1000)
				if n == 0 || err != nil {
					t.Fatalf("%q: %d, %v", in, n, err)
				}
				in = in[n:]
				out, result, bad := r.accept(rep)
				if out == outMore && bad == nil {
					continue
				}
				if out != c.out || (bad != nil) != c.broken || c.out == outDone && !errors.Is(result, c.want) {
					t.Errorf("outcome %v, %v, %v", out, result, bad)
				}
				break
			}
			if stable := s.histories.stable["a"]; (stable == 9) != (c.out == outDone && c.want == nil && !c.broken) {
				t.Errorf("the history is stable up to %d", stable)
			}
			if len(in) != 0 && !c.broken {
				t.Errorf("not consumed: %q", in)
			}
		})
	}
}

// TestRefusedMark: a master that shows its sentinel and then refuses the key that a flush
// writes, as with min-replicas-to-write and no replica, is asked again after longer and
// longer pauses, and it is said why the flush waits.
func TestRefusedMark(t *testing.T) {
	srv := redistest.Start(t)
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, srv)
	s.cfg.WaitReplicas = 1 // which the server had at the time of the mount
	ch := channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
	srv.Do("CONFIG", "SET", "min-replicas-to-write", 1)
	dialled := func() int {
		n, err := strconv.Atoi(srv.Info("stats", "total_connections_received"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := dialled()
	ctx, cancel := context.WithTimeout(bg(t), 3*time.Second)
	defer cancel()
	if err := ch.Flush(ctx, testLayer); err == nil {
		t.Error("a flush succeeds without a replica")
	}
	if n := dialled() - before; n > 200 {
		t.Errorf("dialled %d times in 3 s", n)
	}
	if book.Count("NOREPLICAS") == 0 {
		t.Errorf("nobody says why it waits: %q", book.Lines())
	}
}
