package redis

import (
	"net"
	"strconv"
	"strings"
)

// claim is what a map of the cluster says about a slot.
type claim struct {
	epoch int64 // the higher one wins
	addr  string
}

// clusterMap is what nodes say of the cluster.
type clusterMap struct {
	claims [slotCount]claim
	own    map[string]*[slotCount]slotState // what a node says of itself, by its address
}

// slotState is what a node says of a slot.
type slotState uint8

const (
	slotElsewhere slotState = iota
	slotRests               // it has the slot
	slotMoves               // it has the slot, and answers with ASK for what it has no more
)

// read takes the slots out of a node's reply to CLUSTER NODES:
//
//	id ip:port@cport[,hostname] flags master ping pong epoch link slot slot-slot [slot->-id] ...
//
// Only of itself a node says which slots move.
func (m *clusterMap) read(text, from string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.Contains(f[2], "master") {
			continue
		}
		addr, _, _ := strings.Cut(f[1], "@")
		if strings.HasPrefix(addr, ":") {
			if !strings.Contains(f[2], "myself") {
				continue
			}
			host, _, _ := net.SplitHostPort(from)
			addr = net.JoinHostPort(host, addr[1:])
		}
		if i := strings.LastIndexByte(addr, ':'); i > 0 && strings.Count(addr, ":") > 1 && addr[0] != '[' {
			addr = "[" + addr[:i] + "]" + addr[i:]
		}
		epoch, err := strconv.ParseInt(f[6], 10, 64)
		if err != nil {
			continue
		}
		own := new([slotCount]slotState)
		if strings.Contains(f[2], "myself") {
			m.own[addr] = own
		}
		for _, part := range f[8:] {
			if moving, _, is := strings.Cut(part, "->-"); is {
				if slot, err := strconv.Atoi(strings.TrimPrefix(moving, "[")); err == nil && slot >= 0 && slot < slotCount {
					own[slot] = slotMoves
				}
				continue
			}
			a, b, isRange := strings.Cut(part, "-")
			if !isRange {
				b = a
			}
			first, err1 := strconv.Atoi(a)
			end, err2 := strconv.Atoi(b)
			if err1 != nil || err2 != nil || first < 0 || end >= slotCount { // [slot-<-id]: on its way here
				continue
			}
			for slot := first; slot <= end; slot++ {
				own[slot] = slotRests
				if c := &m.claims[slot]; c.addr == "" || epoch > c.epoch {
					*c = claim{epoch, addr}
				}
			}
		}
	}
}
