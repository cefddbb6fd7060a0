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

// controlKey spells a control record's name as a key: bytes that memcached
// does not take are percent-encoded, and there is always a colon, which no
// block's key has. Different names give different keys. ok is false if the name
// is too long.
func controlKey(name string) (key string, ok bool) {
	plain := strings.IndexByte(name, ':') > 0
	for i := 0; plain && i < len(name); i++ {
		plain = name[i] > ' ' && name[i] < 0x7f && name[i] != '%'
	}
	if plain {
		return name, len(name) <= maxName
	}
	var b strings.Builder
	colon := false
	for i := range len(name) {
		c := name[i]
		if c <= ' ' || c >= 0x7f || c == '%' || (c == ':' && i == 0) {
			const hex = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
			continue
		}
		colon = colon || c == ':'
		b.WriteByte(c)
	}
	key = b.String()
	if !colon {
		// Only this rule makes a key that begins with a colon.
		key = ":" + key
	}
	return key, len(key) <= maxName
}
