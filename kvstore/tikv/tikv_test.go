package tikv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/tikv/client-go/v2/tikvrpc"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestConformance(t *testing.T) {
	for name, wire := range map[string]bool{"mock": false, "wire": true} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
				if c.CapacityBlocks > 0 {
					return storetest.Rig{Skip: "the mock is never full"}
				}
				_, s := newMock(t, wire)
				return storetest.Rig{
					Store:     s,
					Allocates: "the client does",
					Empty:     func(int) { want(t, s.raw.DeleteRange(bg(t), []byte(prefix), []byte("kvbfs\x01")), nil) },
					Corrupt: func(k kvstore.Key) {
						v, err := s.raw.Get(bg(t), blockKey(k))
						want(t, err, nil)
						v[77] ^= 1
						want(t, s.raw.Put(bg(t), blockKey(k), v), nil)
					},
				}
			})
		})
	}
}

// TestRestart: all stores end, and come back with what they had. Whoever writes and
// reads meanwhile waits.
func TestRestart(t *testing.T) {
	m, s, ch := opened(t, true)
	s.haunts.age = 300 * time.Millisecond
	want(t, do1(t, ch, write(1, 1)), nil)
	for _, store := range m.stores {
		store.stop()
	}
	ops := []*kvstore.Op{read(1), write(2, 2)}
	if ch.Try(bg(t), ops) {
		t.Fatalf("Try ended while no store runs: %v, %v", ops[0].Err, ops[1].Err)
	}
	for _, store := range m.stores {
		store.start()
	}
	ch.Finish(bg(t))
	want(t, errors.Join(ops[0].Err, ops[1].Err), nil)
	holds(t, ch, 2, 2)
	want(t, ch.Flush(bg(t), 7), nil)
	// One of them ends; the region's other replicas elect another leader.
	m.stores[0].stop()
	r, _ := m.cluster.GetRegion(m.region)
	m.cluster.ChangeLeader(m.region, r.Peers[1].Id)
	want(t, do1(t, ch, write(1, 3)), nil)
	holds(t, ch, 1, 3)
	m.stores[0].start()
}

// TestRegions: a layer is split into regions while it is used.
func TestRegions(t *testing.T) {
	m, s, ch := opened(t, false)
	const blocks = 200
	all := func(c byte) {
		t.Helper()
		var ops []*kvstore.Op
		for n := range uint64(blocks) {
			ops = append(ops, write(n, c))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
	all(1)
	region := m.region
	for n := uint64(50); n < blocks; n += 50 {
		next, peers := m.cluster.AllocID(), m.cluster.AllocIDs(copies)
		m.cluster.SplitRaw(region, next, blockKey(kvstore.Key{Layer: 7, Number: n}), peers, peers[n/50%copies])
		region = next
	}
	all(2)
	for n := range uint64(blocks) {
		holds(t, ch, n, 2)
	}
	end, err := s.NextExtent(bg(t), 7, 0, false)
	if want(t, err, nil); end != blocks {
		t.Errorf("the extent ends at %d, want %d", end, blocks)
	}
	// A discard over all regions.
	want(t, do1(t, ch, &kvstore.Op{Code: kvstore.Discard, Key: kvstore.Key{Layer: 7, Number: 10}, Count: blocks - 20}), nil)
	if n, err := s.Allocated(bg(t), 7); err != nil || n != 20 {
		t.Errorf("%d blocks are left, %v; want 20", n, err)
	}
}

// TestOutage: nothing answers. Do waits, Try does not, records say so at once, and all
// goes on afterwards.
func TestOutage(t *testing.T) {
	m, s, ch := opened(t, false)
	want(t, do1(t, ch, write(1, 1)), nil)
	m.down.Store(true)
	s.limit = 200 * time.Millisecond
	_, err := s.Control().Get(bg(t), 0, "kvbfs:test:sentinel")
	want(t, err, kvstore.ErrUnreachable)
	ops := []*kvstore.Op{read(1), write(2, 2)}
	if ch.Try(bg(t), ops) {
		t.Fatalf("Try ended while nothing answers: %v, %v", ops[0].Err, ops[1].Err)
	}
	for _, op := range ops {
		want(t, op.Err, kvstore.ErrPending)
	}
	if !s.AnySilent() || !s.Silent(ops[0].Key) {
		t.Error("the store is not silent")
	}
	m.down.Store(false)
	s.limit = controlTime
	ch.Finish(bg(t))
	want(t, errors.Join(ops[0].Err, ops[1].Err), nil)
	if s.AnySilent() {
		t.Error("the store is silent after it answered")
	}
	holds(t, ch, 2, 2)

	m.down.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	op := read(1)
	ch.Do(ctx, []*kvstore.Op{op})
	want(t, op.Err, kvstore.ErrTimeout)
	want(t, ch.Flush(ctx, 7), kvstore.ErrTimeout)
}

// TestFenceEndsRetries: a write that nobody answers is not repeated beyond its fence.
func TestFenceEndsRetries(t *testing.T) {
	m, _, ch := opened(t, false)
	want(t, do1(t, ch, write(1, 1)), nil)
	const open = 300 * time.Millisecond
	var fence kvstore.Fence
	sent := 0
	m.lose = func(req *tikvrpc.Request) (time.Duration, bool) {
		if sent++; !fence.Passes() {
			t.Error("sent after its fence was closed")
		}
		return -1, true
	}
	fence.Open(kvstore.Boottime() + int64(open))
	op := write(1, 2)
	op.Fence = &fence
	want(t, do1(t, ch, op), kvstore.ErrFenced)
	if sent == 0 {
		t.Error("it was never sent")
	}
	m.lose = nil
	holds(t, ch, 1, 1)
}

// TestEmptied: a cluster that has lost everything gives no zeros, also to who has used it
// before.
func TestEmptied(t *testing.T) {
	_, s, ch := opened(t, false)
	want(t, do1(t, ch, write(1, 1)), nil)
	want(t, do1(t, ch, read(2)), kvstore.ErrAbsent)
	want(t, s.raw.DeleteRange(bg(t), []byte(prefix), []byte("kvbfs\x01")), nil)
	want(t, do1(t, ch, read(1)), kvstore.ErrServerLost)
	want(t, ch.Flush(bg(t), 7), kvstore.ErrServerLost)
}

// TestGhost: a change that got no answer is executed late. What was acknowledged
// afterwards stays.
func TestGhost(t *testing.T) {
	for name, first := range map[string]*kvstore.Op{
		"write":   write(1, 1),
		"discard": {Code: kvstore.Discard, Key: kvstore.Key{Layer: 7, Number: 1}},
		"extent":  {Code: kvstore.Discard, Key: kvstore.Key{Layer: 7, Number: 0}, Count: 2 * singly},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits for the ghost to go
			m, s, ch := opened(t, false)
			s.haunts.age = 2 * time.Second
			s.opened = 0 // long ago
			want(t, do1(t, ch, write(1, 9)), nil)
			lost := 0
			m.lose = func(req *tikvrpc.Request) (time.Duration, bool) {
				switch req.Type {
				case tikvrpc.CmdRawBatchPut, tikvrpc.CmdRawBatchDelete, tikvrpc.CmdRawDeleteRange:
					if lost++; req.MaxExecutionDurationMs != uint64(writeTime.Milliseconds()) {
						t.Errorf("a change may be begun %d ms later", req.MaxExecutionDurationMs)
					}
					return 300 * time.Millisecond, lost == 1
				}
				return 0, false
			}
			want(t, do1(t, ch, first), nil)
			if lost != 2 {
				t.Fatalf("it was sent %d times, want twice", lost)
			}
			if !s.Haunted(write(1, 2).Key) {
				t.Error("the store says that nothing can come late")
			}
			want(t, do1(t, ch, write(1, 2)), nil)
			if s.Haunted(write(1, 2).Key) {
				t.Error("the store says that something can come late after a later write")
			}
			m.ghost.Wait()
			holds(t, ch, 1, 2)
			if s.haunts.some.Load() && s.haunts.until("", "\xff") != 0 {
				t.Error("blocks are haunted for ever")
			}
		})
	}
}

// TestSwapIsRepeated: a record's change that was executed, and whose answer was lost,
// recognises itself.
func TestSwapIsRepeated(t *testing.T) {
	m, s, _ := opened(t, false)
	c, sent := s.Control(), 0
	m.mum = func(req *tikvrpc.Request) bool {
		if req.Type != tikvrpc.CmdRawCompareAndSwap {
			return false
		}
		sent++
		return sent%2 == 1
	}
	want(t, c.Add(bg(t), 0, "a:b", []byte("one")), nil)
	rec, err := c.Get(bg(t), 0, "a:b")
	want(t, err, nil)
	want(t, c.Swap(bg(t), 0, "a:b", rec, []byte("two")), nil)
	want(t, s.CreateLayer(bg(t), 8), nil)
	if sent != 6 {
		t.Errorf("%d compare-and-swaps were sent, want each of three twice", sent)
	}
	m.mum = nil
	want(t, c.Swap(bg(t), 0, "a:b", rec, nil), kvstore.ErrConflict)
	want(t, c.Add(bg(t), 0, "a:b", nil), kvstore.ErrExists)
}

// TestPredecessor: a process of this machine was killed. Its successor changes nothing
// before what it sent has gone.
func TestPredecessor(t *testing.T) {
	_, s, ch := opened(t, false)
	s.haunts.age = 300 * time.Millisecond
	gone := exec.Command("true")
	want(t, gone.Run(), nil)
	dead := markKey(fmt.Sprintf("%s%d-55-abc", family(), gone.Process.Pid))
	want(t, s.raw.Put(bg(t), dead, []byte{1}), nil)
	ops, done := []*kvstore.Op{write(1, 1)}, make(chan struct{})
	go func() {
		ch.Do(context.Background(), ops)
		close(done)
	}()
	eventually(t, "the write is there", func() bool {
		v, err := s.raw.BatchGet(bg(t), [][]byte{blockKey(ops[0].Key), dead})
		want(t, err, nil)
		if len(v[0]) > 0 && len(v[1]) > 0 {
			t.Fatal("written while the mark of the dead process is there")
		}
		return len(v[0]) > 0
	})
	<-done
	want(t, ops[0].Err, nil)
	marks := func() [][]byte {
		keys, _, err := s.raw.Scan(bg(t), markKey(""), []byte(prefix+"p"), maxMarks)
		want(t, err, nil)
		return keys
	}
	if m := marks(); len(m) != 1 || !bytes.Contains(m[0], fmt.Appendf(nil, "-%d-", os.Getpid())) {
		t.Errorf("marks: %q, want our own", m)
	}
	want(t, ch.Close(), nil)
	s.past.leave(s)
	if m := marks(); len(m) != 0 {
		t.Errorf("marks after the end: %q", m)
	}
}

// TestInspect: what people must know is said.
func TestInspect(t *testing.T) {
	m, s := newMock(t, false)
	found, err := s.Inspect(bg(t))
	if want(t, err, nil); len(found) != 1 {
		t.Errorf("three stores: %+v", found)
	}
	stores := m.cluster.GetAllStores()
	m.cluster.RemoveStore(stores[0].GetId())
	if found, err = s.Inspect(bg(t)); err != nil || len(found) != 2 {
		t.Errorf("two stores: %+v, %v", found, err)
	}
}

// TestNoPD: no cluster is there.
func TestNoPD(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, Config{PD: []string{"127.0.0.1:1"}})
	want(t, err, kvstore.ErrUnreachable)
	_, err = Open(ctx, Config{})
	want(t, err, kvstore.ErrInvalid)
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"tikv://pd": "tikv://pd:2379", "tikv://a:1,b/p": "tikv://a:1,b:2379/p", "tikv://[::1]": "tikv://[::1]:2379",
	} {
		cfg, pool, text, err := ParseURL(in)
		if err != nil || text != want {
			t.Errorf("%s is %q, %v; want %q", in, text, err, want)
		}
		if again, pool2, text2, err := ParseURL(text); err != nil || text2 != text || pool2 != pool || !slices.Equal(cfg.PD, again.PD) {
			t.Errorf("%s does not stay as it is: %q, %v", text, text2, err)
		}
	}
	for _, in := range []string{"tikv:pd", "tikv://", "tikv://,", "tikv://a,a:2379", "tikv://u:p@a", "tikv://a?x=1", "tikv://a/b/c"} {
		if _, _, text, err := ParseURL(in); err == nil {
			t.Errorf("%s is taken as %s", in, text)
		}
	}
}
