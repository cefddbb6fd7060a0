package memcached

import (
	"bytes"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// vitals is how many items of ballast vital blocks take in the tests below: more than
// one write may try in vain.
const vitals = 180

// drained fills a server and gives ballast to vital blocks. It returns the number of
// the first block that did not fit.
func drained(t *testing.T) (*memcachedtest.Server, uint64) {
	t.Helper()
	server := memcachedtest.Start(t, memcachedtest.MemoryMB(8))
	s := open(t, Config{}, server)
	want(t, s.Control().Add(bg(t), 0, "a:lease", make([]byte, 300)), nil)
	ch := channelOf(t, s)
	end := fill(t, ch, 0)
	for n := range uint64(vitals) {
		w := write(end+1000+n, kvstore.Absent, block(n))
		w.Vital = true
		want(t, do1(t, ch, w), nil)
	}
	return server, end
}

// TestReserveOutlivesItsProcess: who comes anew to a full store does not know which items
// of ballast were given away, and overwrites all the same: blocks and records.
func TestReserveOutlivesItsProcess(t *testing.T) {
	server, end := drained(t)
	s := openUnproven(t, Config{}, server.Addr()) // a sentinel would let it ask
	rec, err := s.Control().Get(bg(t), 0, "a:lease")
	want(t, err, nil)
	want(t, s.Control().Swap(bg(t), 0, "a:lease", rec, bytes.Repeat([]byte{1}, 320)), nil)
	if m := s.servers[0].ballast.missing.Load(); m < maxBallastTries {
		t.Fatalf("%d items were found missing: the renewal did not meet what it should", m)
	}

	other := openUnproven(t, Config{}, server.Addr())
	ch := channelOf(t, other)
	want(t, do1(t, ch, write(5, kvstore.Present, block(7))), nil)
	for n := uint64(0); n+128 <= end; n += 128 {
		var ops []*kvstore.Op
		for i := range uint64(128) {
			ops = append(ops, write(n+i, kvstore.Present, block(n+i+3)))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
	wantBlock(t, ch, 5, block(8))
	if m := other.servers[0].ballast.missing.Load(); m < vitals {
		t.Errorf("%d items are known to be missing, %d are", m, vitals)
	}
	giveBack(t, other, ch)
}

// giveBack discards blocks, by which the reserve comes back.
func giveBack(t *testing.T, s *Store, ch kvstore.Channel) {
	t.Helper()
	var ops []*kvstore.Op
	for n := range uint64(ballastItems) {
		ops = append(ops, discard(n))
	}
	ch.Do(bg(t), ops)
	for _, op := range ops {
		want(t, op.Err, nil)
	}
	if there := ballastOf(t, s); there != ballastItems {
		t.Errorf("%d of %d items are there after as many discards", there, ballastItems)
	}
}

// ballastOf counts the items that the first server has.
func ballastOf(t *testing.T, s *Store) int {
	t.Helper()
	there := 0
	for i := range ballastItems {
		_, err := s.Control().Get(bg(t), 0, string(appendBallastKey(nil, i)))
		if err == nil {
			there++
			continue
		}
		want(t, err, kvstore.ErrAbsent)
	}
	return there
}

// TestReserveIsSought: a store whose sentinel was proven learns what is missing before it
// writes anything, so that discards bring it back; it adds nothing of itself.
func TestReserveIsSought(t *testing.T) {
	server, _ := drained(t)
	s := open(t, Config{}, server) // CreateLayer ends early: the layer is claimed
	srv := s.servers[0]
	if m := srv.ballast.missing.Load(); m != 0 {
		t.Fatalf("%d items are missing before anybody asked", m)
	}
	ch := channelOf(t, s)
	wantBlock(t, ch, 5, block(5))
	for end := time.Now().Add(30 * time.Second); srv.ballast.missing.Load() < vitals; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d items are known to be missing, %d are", srv.ballast.missing.Load(), vitals)
		}
	}
	giveBack(t, s, ch)
}

// TestNewLayerOnAFullServer: who makes a volume while the server is full is told by it
// that there is no room for ballast, also for that which is there. It stays known, and
// so blocks and records can still be overwritten.
func TestNewLayerOnAFullServer(t *testing.T) {
	server := memcachedtest.Start(t, memcachedtest.MemoryMB(8))
	s := open(t, Config{}, server)
	want(t, s.Control().Add(bg(t), 0, "a:lease", make([]byte, 300)), nil)
	ch := channelOf(t, s)
	end := fill(t, ch, 0)
	for n := range uint64(40) {
		w := write(end+1000+n, kvstore.Absent, block(n))
		w.Vital = true
		want(t, do1(t, ch, w), nil)
	}
	want(t, s.EnsureBallast(bg(t)), nil)
	if m := s.servers[0].ballast.missing.Load(); m < 40 || m > 48 {
		t.Errorf("%d items are taken for missing, 40 were given away", m)
	}
	for n := range uint64(300) {
		want(t, do1(t, ch, write(n, kvstore.Present, block(n+1))), nil)
	}
	rec, err := s.Control().Get(bg(t), 0, "a:lease")
	want(t, err, nil)
	want(t, s.Control().Swap(bg(t), 0, "a:lease", rec, make([]byte, 320)), nil)
	giveBack(t, s, ch)
}

// TestNoReserveIsMade: on a server without a volume nothing is missing.
func TestNoReserveIsMade(t *testing.T) {
	server := memcachedtest.Start(t)
	s := openAt(t, Config{}, server.Addr())
	p := wiretest.Spread{N: 1}
	name, value := p.Sentinel(0)
	want(t, s.Control().Add(bg(t), 0, name, value), nil)
	want(t, s.Join(p), nil)
	want(t, s.servers[0].findBallast(bg(t), allBallast()), nil)
	ch := channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	want(t, do1(t, ch, discard(1)), nil)
	if m := s.servers[0].ballast.missing.Load(); m != 0 {
		t.Errorf("%d items are taken for missing", m)
	}
	if there := ballastOf(t, s); there != 0 {
		t.Errorf("%d items were made", there)
	}
}
