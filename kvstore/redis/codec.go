package redis

import (
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A stored block is its data, the checksum (4 bytes) and the tag of the write that
// stored it (8 bytes), big-endian. The tag is what compare-and-swap compares, and
// by which a write that was repeated knows whether its first try was executed. It
// costs no memory: 4097 to 5115 bytes take the same size class of the allocator.
const (
	sumSize   = 4
	tagSize   = 8
	trailer   = sumSize + tagSize
	valueSize = kvstore.BlockSize + trailer
)

// itemSize is what a block takes in a server: the value's size class of 5120 bytes,
// its key, and the entry of the table (measured: 5208 with Redis 7.0).
const itemSize = 5208

// blockHead begins the reply to the GET of a block; what follows has one length.
const blockHead = "$4108\r\n"

// blockReply is the length of the whole reply to the GET of a block.
const blockReply = len(blockHead) + valueSize + 2

// putTrailer writes what follows the data of a block.
func putTrailer(b []byte, sum uint32, tag uint64) {
	binary.BigEndian.PutUint32(b, sum)
	binary.BigEndian.PutUint64(b[sumSize:], tag)
}

// readTrailer reads what putTrailer wrote.
func readTrailer(b []byte) (sum uint32, tag uint64) {
	return binary.BigEndian.Uint32(b), binary.BigEndian.Uint64(b[sumSize:])
}

// blockKey is a block's key for people and the slow road.
func blockKey(k kvstore.Key) string {
	var b [kvstore.KeySize]byte
	k.Put(b[:])
	return string(b[:])
}

// maxName bounds record names as on memcached, so that pools can move.
const maxName = 250

// recordKey spells a control record's name as a key: the name itself. No block's
// key is a name: its fifth byte is a kind, below a space. ok is false for a name
// that is empty, too long, or has control characters.
func recordKey(name string) (key string, ok bool) {
	if name == "" || len(name) > maxName {
		return "", false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] == 0x7f {
			return "", false
		}
	}
	return name, true
}

// storeScript stores under conditions that SET does not know, and also on a full
// server. KEYS[1] key; ARGV[1] data, ARGV[2] trailer, ARGV[3] the condition: "" none,
// XX present, NX absent, else the tag that the stored value must end with. It
// returns 1 stored, 0 refused, -1 absent. An overwrite takes no more memory than
// the old value had.
const storeScript = `#!lua flags=allow-oom
local c = ARGV[3]
if c ~= '' then
  local n = redis.call('STRLEN', KEYS[1])
  if c == 'NX' then
    if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
  elseif redis.call('EXISTS', KEYS[1]) == 0 then
    return -1
  elseif c ~= 'XX' and redis.call('GETRANGE', KEYS[1], n - 8, n) ~= c then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2])
return 1`

// fleetingScript is a change that leaves nothing, for a flush: a mark that stayed in a slot
// on its way would be in the way of the other node's own.
const fleetingScript = `#!lua flags=allow-oom
redis.call('SET', KEYS[1], '')
redis.call('DEL', KEYS[1])
return 1`

// Pieces of commands, built once.
var (
	getHead     = command(2, "GET") + "$12\r\n"
	delHead     = command(2, "DEL") + "$12\r\n"
	setHead     = command(3, "SET") + "$12\r\n"
	setIfHead   = command(4, "SET") + "$12\r\n"
	storeHead   = command(7, "EVAL", storeScript, "1") + "$12\r\n"
	dataHead    = "\r\n$4108\r\n" // of a whole value, after a key
	blockArg    = "\r\n$4096\r\n" // of the data alone
	askingWords = command(1, "ASKING")
)

// command spells the beginning of a command of n words.
func command(n int, words ...string) string {
	var b strings.Builder
	b.WriteString("*" + strconv.Itoa(n) + "\r\n")
	for _, w := range words {
		b.WriteString("$" + strconv.Itoa(len(w)) + "\r\n" + w + "\r\n")
	}
	return b.String()
}

// appendCommand appends a whole command.
func appendCommand(b []byte, words ...string) []byte {
	return append(b, command(len(words), words...)...)
}

// slotCount is the number of hash slots of a Redis Cluster.
const slotCount = 16384

// keySlot returns the hash slot of a key in a Redis Cluster: CRC16 (XMODEM) of the
// key, or of what stands between its first { and the next }, if that is anything.
// Keys of blocks are binary and may hold both by chance.
func keySlot[B []byte | string](key B) int {
	for i := 0; i < len(key); i++ {
		if key[i] != '{' {
			continue
		}
		for j := i + 1; j < len(key); j++ {
			if key[j] == '}' {
				if j > i+1 {
					return int(crc16(key[i+1:j])) % slotCount
				}
				break
			}
		}
		break
	}
	return int(crc16(key)) % slotCount
}

var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i) << 8
		for range 8 {
			if c&0x8000 != 0 {
				c = c<<1 ^ 0x1021
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16[B []byte | string](b B) uint16 {
	c := uint16(0)
	for i := 0; i < len(b); i++ {
		c = c<<8 ^ crc16Table[byte(c>>8)^b[i]]
	}
	return c
}
