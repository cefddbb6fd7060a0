package pool

import (
	"bytes"
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// table is what the data path asks: the pool record, translated from the
// record's order of servers to the URL's. It never changes; a new one replaces
// it.
type table struct {
	record    *poolRecord
	master    int   // server number of the record's first server
	numbers   []int // server number of each of the record's servers
	slots     [Slots]uint16
	name      string   // of the sentinels
	sentinels [][]byte // by server number
}

// newTable builds a table. numbers[i] is the store's number of the record's
// server i.
func newTable(r *poolRecord, numbers []int, sentinelName string) *table {
	t := &table{record: r, master: numbers[0], numbers: numbers, name: sentinelName, sentinels: make([][]byte, len(numbers))}
	for i, n := range numbers {
		t.sentinels[n] = sentinelValue(sentinelName, r.servers[i].sentinel)
	}
	for i, s := range r.slots {
		t.slots[i] = uint16(numbers[s])
	}
	return t
}

// SlotBlocks is how many consecutive blocks share a slot, hence a server: 128 KiB,
// so that a read-ahead window or a large request of FUSE goes out in few batches.
const (
	SlotBlocks = 1 << slotBits
	slotBits   = 5
)

// SlotOf is the placement function. It is part of the format.
func SlotOf(k kvstore.Key) int {
	n := k.Number
	if k.Kind == kvstore.KindBlock {
		n >>= slotBits
	}
	h := mix(uint64(k.Kind)<<56 | n&kvstore.MaxNumber)
	return int(mix(h+uint64(k.Layer)*0x9e3779b97f4a7c15) >> 52)
}

// mix is the finalizer of splitmix64: every input bit changes every output bit
// with a probability close to one half.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Server implements kvstore.Placement: slot = hash(layer, number>>5), so that
// 128 KiB stay together; map pages are placed by their own number. While the
// pool is not formatted it is server 0.
func (p *Pool) Server(k kvstore.Key) int {
	t := p.table.Load()
	if t == nil {
		return 0
	}
	return int(t.slots[SlotOf(k)])
}

// Slot returns the slot of a key, for people.
func (p *Pool) Slot(k kvstore.Key) int { return SlotOf(k) }

// Sentinel implements kvstore.Placement. The value is shared: do not change it.
func (p *Pool) Sentinel(server int) (string, []byte) {
	t := p.table.Load()
	if t == nil || server < 0 || server >= len(t.sentinels) {
		return "", nil
	}
	return t.name, t.sentinels[server]
}

// CheckSentinels reads every server's sentinel: ErrServerLost (as an OpError
// naming the server) if one lost it, ErrUnreachable if one does not answer.
func (p *Pool) CheckSentinels(ctx context.Context) error {
	for i := range p.servers {
		if err := p.checkSentinel(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pool) checkSentinel(ctx context.Context, server int) error {
	name, want := p.Sentinel(server)
	if name == "" {
		return ErrNoPool
	}
	got, err := p.ctl.Get(ctx, server, name)
	if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
		return err
	}
	if err != nil || !bytes.Equal(got.Value, want) {
		return p.opError("check sentinel", server, name, kvstore.ErrServerLost)
	}
	return nil
}

func (p *Pool) opError(op string, server int, name string, err error) error {
	return &kvstore.OpError{Op: op, Server: p.servers[server], Name: name, Err: err}
}
