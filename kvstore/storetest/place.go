package storetest

import (
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Placement is a simple kvstore.Placement for tests: neighbours stay together by
// 32 blocks, and runs are spread evenly. Fill it before Join.
type Placement struct {
	names  []string // of sentinels; nil: no proof is asked
	values [][]byte
	n      int
}

// Place returns a placement over n servers that asks for no proof.
func Place(n int) *Placement { return &Placement{n: n} }

// Prove makes it ask for a sentinel of this record name on every server. The
// caller stores the records: Sentinel gives their values.
func (p *Placement) Prove(name string) *Placement {
	for i := range p.n {
		p.names = append(p.names, name)
		p.values = append(p.values, []byte(fmt.Sprintf("sentinel %d of %s", i, name)))
	}
	return p
}

// Server spreads runs of 32 blocks over the servers.
func (p *Placement) Server(k kvstore.Key) int {
	h := (k.Number>>5 + uint64(k.Layer) + uint64(k.Kind)) * 0x9E3779B97F4A7C15
	return int(h >> 33 % uint64(p.n))
}

// Sentinel returns what Prove was told.
func (p *Placement) Sentinel(server int) (string, []byte) {
	if p.names == nil {
		return "", nil
	}
	return p.names[server], p.values[server]
}
