package volume

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestClaimsStayOnTheirServer: blocks that share a claim are on one server, or a
// write that waits for a silent server would hold up blocks of others.
func TestClaimsStayOnTheirServer(t *testing.T) {
	r := newRig(t, "mem3")
	server := make(map[int32]int)
	for layer := range kvstore.LayerID(4) {
		for lba := range uint64(100_000) {
			c := claimOf(layer, lba)
			if c < 0 || c >= claimWords {
				t.Fatalf("claim %d of %d", c, claimWords)
			}
			s := r.pool.Server(kvstore.Key{Layer: layer, Number: lba})
			if was, ok := server[c]; ok && was != s {
				t.Fatalf("block %d of layer %d is on server %d and shares its claim with one on server %d", lba, layer, s, was)
			}
			server[c] = s
		}
	}
	if len(server) < claimWords/2 {
		t.Errorf("only %d of %d claims are used", len(server), claimWords)
	}
}
