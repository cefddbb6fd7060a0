package pool

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// uuidFrom is uuid(XX) of docs/format.md.
func uuidFrom(b byte) (id [16]byte) {
	for i := range id {
		id[i] = b + byte(i)
	}
	return id
}

var vectorTime = time.Unix(1_700_000_000, 123456789).UTC()

// samples are records with fixed content by name; the encoder must give the
// same bytes for ever.
func samples() map[string][]byte {
	h := func(kind recordKind) head {
		return head{kind: kind, nonce: uuidFrom(0xa0), revision: 7}
	}
	pr := &poolRecord{uuid: uuidFrom(0), version: 1, created: vectorTime,
		servers: []member{{"a:11211", uuidFrom(0x10)}, {"b:11211", uuidFrom(0x20)}}}
	for i := range pr.slots {
		pr.slots[i] = uint16(i % 2)
	}
	cat := &catalogue{entries: []entry{{"backup", Removing, uuidFrom(0x40)}, {"vm-1", Ready, uuidFrom(0x30)}}}
	at := hostID{host: uuidFrom(0x60), boot: uuidFrom(0x70)}
	vol := &Volume{Name: "vm-1", UUID: uuidFrom(0x30), State: Ready, Size: 10 << 30, MapHeight: 2, Created: vectorTime,
		Damaged: true, Generation: 3, Layers: []Layer{{0x01020304, uuidFrom(0x80)}},
		last: lastHolder{id: uuidFrom(0x50), at: at, ttl: 20 * time.Second}}
	lease := &leaseRecord{held: true, volume: uuidFrom(0x30), holder: uuidFrom(0x50), at: at, pid: 4711, generation: 3,
		sequence: 9, ttl: 20 * time.Second, since: vectorTime, poolVersion: 1, hostname: "node7"}
	p := &Pool{opt: Options{Name: DefaultName}}
	out := map[string][]byte{
		p.poolName():                 seal(p.poolName(), h(kindPool), pr.encode()),
		p.sentinelName():             sentinelValue(p.sentinelName(), uuidFrom(0x10)),
		p.catalogueName():            seal(p.catalogueName(), h(kindCatalogue), cat.encode()),
		p.volumeName(uuidFrom(0x30)): seal(p.volumeName(uuidFrom(0x30)), h(kindVolume), encodeVolume(vol)),
		p.leaseName(uuidFrom(0x30)):  seal(p.leaseName(uuidFrom(0x30)), h(kindLease), lease.encode()),
	}
	shared := &leaseRecord{volume: uuidFrom(0x90), holder: uuidFrom(0x50), at: at, pid: 4711, generation: 3,
		sequence: 12, ttl: 20 * time.Second, since: vectorTime, poolVersion: 1, hostname: "node7", readers: []reader{
			{id: uuidFrom(0xb0), at: at, pid: 42, ttl: 10 * time.Second, beat: 5, since: vectorTime, hostname: "node8"},
			{id: uuidFrom(0xc0), at: at, pid: 43, ttl: 20 * time.Second, beat: 1, since: vectorTime, hostname: "node9"},
		}}
	sharedHead := h(kindLease)
	sharedHead.incompat = featShared
	out[p.leaseName(uuidFrom(0x90))] = seal(p.leaseName(uuidFrom(0x90)), sharedHead, shared.encode())
	consents := encodeConsents([]Consent{{vectorTime, 341, 2, 7, 1, "node7"}})
	out[p.consentsName(uuidFrom(0x30))] = seal(p.consentsName(uuidFrom(0x30)), h(kindConsents), consents)
	return out
}

// TestGoldenRecords compares the encoder with testdata/*.hex.
func TestGoldenRecords(t *testing.T) {
	for name, value := range samples() {
		kind := strings.Split(name, ":")[2]
		if strings.HasSuffix(name, "9e9f") {
			kind += "-shared"
		}
		file := filepath.Join("testdata", kind+".hex")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil {
			t.Fatal(file, err)
		}
		if !bytes.Equal(value, want) {
			t.Errorf("%s: the encoder gives\n%x", file, value)
		}
		again, err := recode(name, want)
		if err != nil || !bytes.Equal(again, want) {
			t.Errorf("%s: decoded and encoded again it is another record (%v)", file, err)
		}
	}
}

// recode decodes any record and encodes it again.
func recode(name string, value []byte) ([]byte, error) {
	if len(value) < 7 {
		return nil, errShort
	}
	kind := recordKind(value[6])
	h, body, err := unseal(name, kind, value)
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindPool:
		r, err := decodePool(h, body)
		if err != nil {
			return nil, err
		}
		body = r.encode()
	case kindCatalogue:
		r, err := decodeCatalogue(h, body)
		if err != nil {
			return nil, err
		}
		body = r.encode()
	case kindVolume:
		r, err := decodeVolume(h, body)
		if err != nil {
			return nil, err
		}
		body = encodeVolume(r)
	case kindLease:
		r, err := decodeLease(h, body)
		if err != nil {
			return nil, err
		}
		body = r.encode()
	case kindConsents:
		list, tail, err := decodeConsents(h, body)
		if err != nil {
			return nil, err
		}
		body = append(encodeConsents(list), tail...)
	}
	return seal(name, h, body), nil
}

// TestDocumentedVectors executes the vectors of docs/format.md.
func TestDocumentedVectors(t *testing.T) {
	text, err := os.ReadFile("../../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(text), "```vectors\n")
	if !ok {
		t.Fatal("docs/format.md has no block of vectors")
	}
	block, _, _ = strings.Cut(block, "```")
	seen := map[string]int{}
	for line := range strings.Lines(block) {
		question, want, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if !ok {
			t.Fatalf("not a vector: %s", line)
		}
		if got := answer(t, strings.Fields(question)); got != want {
			t.Errorf("%s\n got %s\nwant %s", question, got, want)
		}
		seen[strings.Fields(question)[0]]++
	}
	for _, kind := range []string{"key", "seed", "checksum", "slot", "record"} {
		if seen[kind] < 1 {
			t.Errorf("no vector of kind %s", kind)
		}
	}
}

func answer(t *testing.T, q []string) string {
	t.Helper()
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	key := func(q []string) kvstore.Key {
		return kvstore.Key{Layer: kvstore.LayerID(number("0x" + q[0])), Kind: kvstore.Kind(number(q[1])), Number: number(q[2])}
	}
	byteOf := func(s, f string) byte {
		b, err := hex.DecodeString(strings.TrimSuffix(strings.TrimPrefix(s, f+"("), ")"))
		if err != nil || len(b) != 1 {
			t.Fatalf("%s is not a %s", s, f)
		}
		return b[0]
	}
	switch q[0] {
	case "key":
		var raw [kvstore.KeySize]byte
		key(q[1:]).Put(raw[:])
		return hex.EncodeToString(raw[:]) + " " + base64.RawURLEncoding.EncodeToString(raw[:])
	case "seed":
		return fmt.Sprintf("%08x", kvstore.Seed(uuidFrom(byteOf(q[1], "uuid"))))
	case "checksum":
		data := bytes.Repeat([]byte{byteOf(q[5], "fill")}, kvstore.BlockSize)
		crc := kvstore.Checksum(kvstore.Seed(uuidFrom(byteOf(q[1], "uuid"))), key(q[2:]), data)
		return fmt.Sprintf("%08x %d", crc, crc|1<<31)
	case "slot":
		return strconv.Itoa((&Pool{}).Slot(key(q[1:])))
	case "record":
		return hex.EncodeToString(samples()[q[1]])
	}
	t.Fatalf("unknown vector %s", q[0])
	return ""
}

func TestDecodersRefuse(t *testing.T) {
	for name, good := range samples() {
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << (i % 8)
			if _, err := recode(name, bad); err == nil {
				t.Errorf("%s: a flipped bit in byte %d passes", name, i)
			}
		}
		if _, err := recode(name+"x", good); err == nil {
			t.Errorf("%s passes under another name", name)
		}
		for _, n := range []int{0, 1, headSize, len(good) - 1} {
			if _, err := recode(name, good[:n]); err == nil {
				t.Errorf("%s passes when cut to %d bytes", name, n)
			}
		}
	}
}

func TestFeaturesAndVersions(t *testing.T) {
	const name = "kvbfs:x:catalogue"
	body := (&catalogue{}).encode()
	_, _, err := unseal(name, kindCatalogue, seal(name, head{kind: kindCatalogue, incompat: 4}, body))
	wantErr(t, err, ErrFormat)
	newer := seal(name, head{kind: kindCatalogue}, body)
	newer[5] = 2
	newer = append(newer[:len(newer)-crcSize], 0, 0, 0, 0)
	(&encoder{newer[:len(newer)-crcSize]}).u32(recordCRC(name, newer[:len(newer)-crcSize]))
	_, _, err = unseal(name, kindCatalogue, newer)
	wantErr(t, err, ErrFormat)

	for _, h := range []head{{kind: kindCatalogue}, {kind: kindCatalogue, compat: 1}, {kind: kindCatalogue, roCompat: 1}} {
		long := append(bytes.Clone(body), 1, 2, 3)
		again, err := recode(name, seal(name, h, long))
		switch {
		case !h.tail() && err == nil:
			t.Error("bytes after the body pass without a feature")
		case h.tail() && (err != nil || !bytes.Equal(again, seal(name, h, long))):
			t.Error("the tail of a newer version is not kept", err)
		}
	}
	wantErr(t, writable(2), ErrFormat)
}

// FuzzDecodeRecord: no panic, no large allocation, and what is accepted is
// encoded to the same bytes.
func FuzzDecodeRecord(f *testing.F) {
	const name = "kvbfs:default:fuzz"
	for n, value := range samples() {
		h, body, err := unseal(n, recordKind(value[6]), value)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(h.kind), h.compat, body)
	}
	f.Fuzz(func(t *testing.T, kind uint8, compat uint64, body []byte) {
		value := seal(name, head{kind: recordKind(kind), compat: compat}, body)
		again, err := recode(name, value)
		if err == nil && recordKind(kind) != kindSentinel && !bytes.Equal(again, value) {
			t.Fatalf("accepted %x but encodes %x", value, again)
		}
	})
}

// FuzzDecodeEnvelope feeds raw bytes, as a hostile server would.
func FuzzDecodeEnvelope(f *testing.F) {
	all := samples()
	for _, value := range all {
		f.Add(value)
	}
	names := slices.Sorted(maps.Keys(all))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, name := range names {
			again, err := recode(name, value)
			if err == nil && !bytes.Equal(again, value) {
				t.Fatalf("accepted %x but encodes %x", value, again)
			}
		}
	})
}
