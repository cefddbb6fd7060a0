package memcached

import (
	"encoding/base64"
	"strconv"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

// keyLen is the length of a block's key on the wire: 12 bytes in base64url.
// With it an item of 4096 bytes takes 4175 bytes and fits the slab class of 4176;
// with a key of 18 bytes it would not.
const keyLen = 16

// flagsMark is set in the client flags of every block, which makes them ten
// decimal digits always and never zero: the header of a reply then has one
// length, and an item of anybody else (flags 0) never passes.
const flagsMark = 1 << 31

// putKey writes the key as memcached knows it into dst, keyLen bytes.
func putKey(dst *[keyLen]byte, k kvstore.Key) {
	var raw [kvstore.KeySize]byte
	k.Put(raw[:])
	base64.RawURLEncoding.Encode(dst[:], raw[:])
}

// keyText is putKey for people and tests.
func keyText(k kvstore.Key) string {
	var b [keyLen]byte
	putKey(&b, k)
	return string(b[:])
}

// blockFlags returns the client flags of a block: 31 bits of its CRC32C and the
// mark.
func blockFlags(seed uint32, k kvstore.Key, data []byte) uint32 {
	return kvstore.Checksum(seed, k, data) | flagsMark
}

// appendStore appends the command line of a storage command for a block.
func appendStore(b []byte, verb string, key []byte, flags uint32) []byte {
	b = append(b, verb...)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(flags), 10)
	return append(b, " 0 4096"...)
}

// maxName is memcached's limit for a key in bytes.
const maxName = 250

// controlKey spells a control record's name as a key. There is always a colon,
// which no block's key has, and different names give different keys. ok is false
// for a name that is empty, too long, or has bytes that memcached does not take.
func controlKey(name string) (key string, ok bool) {
	if name == "" {
		return "", false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] == 0x7f {
			return "", false
		}
	}
	key = name
	if strings.IndexByte(name, ':') <= 0 {
		// Only this rule makes a key that begins with a colon.
		key = ":" + name
	}
	return key, len(key) <= maxName
}
