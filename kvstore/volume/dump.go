package volume

import (
	"encoding/hex"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Dump describes in a line each what is open, and what holds it up, for people who
// look for why something hangs. It waits for nothing.
func (s *Set) Dump() (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.open {
		lines = append(lines, v.dump())
	}
	for name := range s.opening {
		lines = append(lines, "volume "+name+": being opened")
	}
	for name, l := range s.names {
		if l.users > 0 {
			lines = append(lines, fmt.Sprintf("volume %s: %d opens, closes or changes under way", name, l.users))
		}
	}
	slices.Sort(lines)
	return lines
}

// dump reads refs without the name's lock: a stale count is better than a wait.
func (v *Volume) dump() string {
	words := []string{fmt.Sprintf("volume %s: layer %s, %d bytes, requests inside %d", v.name, v.layer, v.Size(), max(v.use.n.Load(), v.use.n.Load()+usersGone))}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if v.writable.Load() {
		add("writable")
	}
	if v.aborted.Load() {
		add("ABORTED")
	}
	if t := v.timeout.Load(); t > 0 {
		add("io-timeout %v", time.Duration(t))
	}
	l := v.lease.Load()
	if r := v.reading.Load(); r != nil {
		l = r
		add("shared for reading")
	}
	if v.stale {
		add("stale")
	}
	if l != nil {
		id, left := l.ID(), time.Duration(l.Fence().Deadline()-kvstore.Boottime())
		add("lease %s generation %d valid for %v", hex.EncodeToString(id[:4]), l.Generation(), left.Round(time.Millisecond))
	}
	if m := v.m.Load(); m != nil {
		add("%d blocks, %d to be deleted, %d dirty pages of the map", m.count.Load(), m.pend.Load(), countBits(m.dirty))
	}
	if len(v.gate) > 0 {
		add("a page of the map is being stored")
	}
	if err := v.lostFlush.Load(); err != nil {
		add("FLUSHES FAIL: %v", *err)
	}
	return strings.Join(words, ", ")
}

func countBits(words []uint64) (n int) {
	for i := range words {
		n += bits.OnesCount64(atomic.LoadUint64(&words[i]))
	}
	return n
}
