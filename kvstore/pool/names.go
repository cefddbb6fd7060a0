package pool

import (
	"encoding/hex"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// DefaultName is the pool's name on its servers when Options.Name is empty.
const DefaultName = "default"

// maxName is the longest name of a volume or pool. With it the longest control
// name, "kvbfs:POOL:consents:UUID", has 112 bytes; memcached takes 250.
const maxName = 64

// CheckName says whether s may name a volume: [A-Za-z0-9][A-Za-z0-9._-]{0,63}.
// Else ErrBadName with what is allowed.
func CheckName(s string) error {
	ok := len(s) >= 1 && len(s) <= maxName
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			ok = false
		}
	}
	if ok {
		return nil
	}
	if len(s) > 2*maxName {
		s = s[:2*maxName] + "..."
	}
	return fmt.Errorf("%w %q: use 1 to %d of A-Z a-z 0-9 . _ - and begin with a letter or digit", ErrBadName, s, maxName)
}

// CheckSize says whether n bytes may be a volume's size.
func CheckSize(n int64) error {
	switch {
	case n < kvstore.BlockSize:
		return fmt.Errorf("%w %d: at least %d bytes", ErrBadSize, n, kvstore.BlockSize)
	case n > MaxSize:
		return fmt.Errorf("%w %d: at most %d bytes (64 TiB)", ErrBadSize, n, int64(MaxSize))
	case n%kvstore.BlockSize != 0:
		return fmt.Errorf("%w %d: must be a multiple of %d bytes", ErrBadSize, n, kvstore.BlockSize)
	}
	return nil
}

// The names of the control records. The colon keeps them apart from blocks,
// whose keys never contain one. What belongs to a volume goes by its uuid, so
// that nothing is left behind for a later volume of the same name.
func (p *Pool) recordName(what string) string { return "kvbfs:" + p.opt.Name + ":" + what }

func (p *Pool) poolName() string      { return p.recordName("pool") }
func (p *Pool) sentinelName() string  { return p.recordName("sentinel") }
func (p *Pool) catalogueName() string { return p.recordName("catalogue") }

func (p *Pool) volumeName(uuid [16]byte) string {
	return p.recordName("volume:" + hex.EncodeToString(uuid[:]))
}

func (p *Pool) consentsName(uuid [16]byte) string {
	return p.recordName("consents:" + hex.EncodeToString(uuid[:]))
}

func (p *Pool) leaseName(uuid [16]byte) string {
	return p.recordName("lease:" + hex.EncodeToString(uuid[:]))
}
