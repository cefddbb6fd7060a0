package redis

import (
	"net"
	"slices"
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
	own    map[*node]*ownSlots
	// aliases are the addresses by name, as MOVED and ASK may have it, of those by number.
	aliases map[string]string
}

func newClusterMap() *clusterMap {
	return &clusterMap{own: map[*node]*ownSlots{}, aliases: map[string]string{}}
}

// ownSlots is what a node says of itself.
type ownSlots struct {
	addr  string
	state [slotCount]slotState
	to    map[int]string  // of slots that move: the address of where they move
	lives map[string]bool // masters that have not failed, as it knows them
}

// slotState is what a node says of a slot.
type slotState uint8

const (
	slotElsewhere slotState = iota
	slotRests               // it has the slot
	slotMoves               // it has the slot, and answers with ASK for what it has no more
	slotComes               // another one has the slot, and it serves who was led here by an ASK
)

// hasLeft says whether nothing of a slot that rests with another node is on the way back from
// a node: it says so itself, or is gone, as the other one says.
func (m *clusterMap) hasLeft(slot int, n *node, owner *ownSlots) bool {
	if own := m.own[n]; own != nil {
		return own.state[slot] != slotComes
	}
	return !owner.lives[n.addr]
}

// read takes the slots out of a node's reply to CLUSTER NODES:
//
//	id ip:port@cport[,hostname] flags master ping pong epoch link slot slot-slot [slot->-id] [slot-<-id] ...
//
// Only of itself a node says which slots move.
func (m *clusterMap) read(text string, from *node) {
	addrs, lives := map[string]string{}, map[string]bool{} // by id; by address
	var moving []string
	var own *ownSlots
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.Contains(f[2], "master") {
			continue
		}
		myself := strings.Contains(f[2], "myself")
		addr := nodeAddr(f[1], from.addr, myself)
		epoch, err := strconv.ParseInt(f[6], 10, 64)
		if addr == "" || err != nil {
			continue
		}
		addrs[f[0]] = addr
		lives[addr] = !slices.Contains(strings.Split(f[2], ","), "fail")
		if _, name, _ := strings.Cut(f[1], ","); name != "" && !strings.Contains(name, "=") {
			_, port, _ := net.SplitHostPort(addr)
			m.aliases[net.JoinHostPort(name, port)] = addr
		}
		if myself {
			own = &ownSlots{addr: addr, to: map[int]string{}, lives: lives}
			m.own[from] = own
		}
		for _, part := range f[8:] {
			if part[0] == '[' {
				moving = append(moving, part)
				continue
			}
			a, b, isRange := strings.Cut(part, "-")
			if !isRange {
				b = a
			}
			first, err1 := strconv.Atoi(a)
			end, err2 := strconv.Atoi(b)
			if err1 != nil || err2 != nil || first < 0 || end >= slotCount {
				continue
			}
			for slot := first; slot <= end; slot++ {
				if myself {
					own.state[slot] = slotRests
				}
				if c := &m.claims[slot]; c.addr == "" || epoch > c.epoch {
					*c = claim{epoch, addr}
				}
			}
		}
	}
	if own != nil {
		own.move(moving, addrs)
	}
}

// move takes [slot->-id] and [slot-<-id].
func (o *ownSlots) move(parts []string, addrs map[string]string) {
	for _, part := range parts {
		part = strings.Trim(part, "[]")
		number, id, goes := strings.Cut(part, "->-")
		if !goes {
			number, id, _ = strings.Cut(part, "-<-")
		}
		slot, err := strconv.Atoi(number)
		switch {
		case err != nil || slot < 0 || slot >= slotCount || id == "":
		case goes:
			o.state[slot], o.to[slot] = slotMoves, addrs[id]
		default:
			o.state[slot] = slotComes
		}
	}
}

// nodeAddr reads "ip:port@cport[,hostname]"; empty if it tells nothing. A node that does not
// know its own address is where it was asked.
func nodeAddr(text, from string, myself bool) string {
	addr, _, _ := strings.Cut(text, "@")
	if strings.LastIndexByte(addr, ':') == 0 && !myself {
		return ""
	}
	return hostPort(addr, from)
}

// hostPort makes an address as Redis writes it, "host:port" with IPv6 without brackets, one to
// dial. Without a host, or with "?" (cluster-preferred-endpoint-type), the host is that of
// the node that told it, from.
func hostPort(addr, from string) string {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 || addr[0] == '[' {
		return addr
	}
	host, port := addr[:i], addr[i+1:]
	if host == "" || host == "?" {
		host, _, _ = net.SplitHostPort(from)
	}
	return net.JoinHostPort(host, port)
}
