package redis

import (
	"bytes"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestDocumentedVectors executes the vectors of Redis in docs/format.md.
func TestDocumentedVectors(t *testing.T) {
	text, err := os.ReadFile("../../docs/format.md")
	want(t, err, nil)
	_, lines, ok := strings.Cut(string(text), "```redis\n")
	if !ok {
		t.Fatal("docs/format.md has no block of vectors")
	}
	lines, _, _ = strings.Cut(lines, "```")
	seen := map[string]int{}
	for line := range strings.Lines(lines) {
		question, answer, _ := strings.Cut(strings.TrimSpace(line), " = ")
		q := strings.Fields(question)
		got := ""
		number := func(s string, base int) uint64 {
			n, err := strconv.ParseUint(s, base, 64)
			want(t, err, nil)
			return n
		}
		argument := func(s, f string) byte {
			return byte(number(strings.TrimSuffix(strings.TrimPrefix(s, f+"("), ")"), 16))
		}
		switch q[0] {
		case "value":
			var uuid [16]byte
			for i := range uuid {
				uuid[i] = argument(q[1], "uuid") + byte(i)
			}
			k := kvstore.Key{Layer: kvstore.LayerID(number(q[2], 16)), Kind: kvstore.Kind(number(q[3], 10)), Number: number(q[4], 10)}
			op := &kvstore.Op{Code: kvstore.Write, Key: k, Seed: kvstore.Seed(uuid),
				Data: bytes.Repeat([]byte{argument(q[5], "fill")}, kvstore.BlockSize)}
			var r request
			r.begin(op, number(q[6], 16))
			got = hex.EncodeToString(r.tail(nil)[:trailer])
		case "copy":
			slot := int(number(q[1], 10))
			got = slotTags()[slot]
		default:
			t.Fatalf("unknown vector %s", line)
		}
		if got != answer {
			t.Errorf("%s\n got %s\nwant %s", question, got, answer)
		}
		seen[q[0]]++
	}
	if seen["value"] < 3 || seen["copy"] < 3 {
		t.Errorf("vectors: %v", seen)
	}
}
