package volume

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// stageLooks bounds at how many places of a request WaitsFor looks, and at how
// many units of placement for one that is about the whole volume: a slot table has
// 4096.
const stageLooks = 4096

// WaitsFor says in words what holds up a request of a kind on n bytes at off, going
// by what the volume is waiting for at the moment. Requests in work are not tracked
// for it, so it costs the data path nothing, and it never waits.
func (v *Volume) WaitsFor(kind RequestKind, off, n int64) string {
	changes := kind != Read && kind != Flush
	if l := v.lease.Load(); l != nil && (changes || kind == Flush) && !l.Fence().Passes() {
		return "the volume's lease, which ran out and is being renewed at " + l.Server()
	}
	first, end := uint64(off)/kvstore.BlockSize, uint64(off+max(n, 1)+kvstore.BlockSize-1)/kvstore.BlockSize
	if kind == Flush {
		first, end = 0, v.blocks.Load()
	}
	if l := v.reading.Load(); l != nil && !l.Fence().Passes() {
		return "the volume's read lease, which ran out and is being renewed at " + l.Server()
	}
	if servers := v.silentServers(first, end); len(servers) > 0 {
		return "server " + strings.Join(servers, " and ") + ", which does not answer"
	}
	if kind != Read && len(v.gate) > 0 {
		return "a page of the presence map, which is being stored"
	}
	for lba := first; kind != Flush && lba < min(end, first+stageLooks); lba++ {
		if v.set.claims.words[claimOf(v.layer, lba)].Load() != 0 {
			return fmt.Sprintf("the store, or another request on block %d", lba)
		}
	}
	return "the store"
}

// silentServers are the servers of some blocks, and of their pages, that do not
// answer.
func (v *Volume) silentServers(first, end uint64) (servers []string) {
	st := v.set.store
	if !st.AnySilent() {
		return nil
	}
	look := func(k kvstore.Key) {
		if !st.Silent(k) {
			return
		}
		if s := st.Locate(k).Server; !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	lba := first
	for range stageLooks {
		if lba >= end {
			break
		}
		look(kvstore.Key{Layer: v.layer, Number: lba})
		if v.m.Load() != nil {
			look(pageID{0, lba / bitsPerPage}.key(v.layer))
		}
		lba = (lba/pool.SlotBlocks + 1) * pool.SlotBlocks
	}
	return servers
}
