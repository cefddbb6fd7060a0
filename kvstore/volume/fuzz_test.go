package volume

import (
	"bytes"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// FuzzUnaligned compares split with bytes that are counted one by one, and
// requests of any alignment with a []byte. Each four bytes of the script are one
// request: what, and where in units of 16 bytes; n16 varies the lengths.
func FuzzUnaligned(f *testing.F) {
	f.Add(uint32(0), uint16(4096), []byte("w000d010w020z005r000"))
	f.Add(uint32(1000), uint16(100), []byte{0, 0, 1, 2, 1, 0, 1, 1, 0, 0, 0, 9})
	f.Add(uint32(4095), uint16(4098), []byte{3, 1, 0, 0, 2, 1, 1, 1, 4, 0, 0, 0, 0, 2, 2, 2})
	f.Add(uint32(4096), uint16(8193), []byte{0, 1, 1, 1, 5, 0, 0, 0, 1, 1, 1, 2})
	f.Add(uint32(10), uint16(4086), []byte{})
	r := newRig(f, "mem") // one for all: to make it takes longer than to use it
	r.create("v", scriptSize)
	b := &scriptBuffers{}
	f.Cleanup(func() { r.t, r.store.t = f, f })
	f.Fuzz(func(t *testing.T, off32 uint32, n16 uint16, script []byte) {
		if n16 == 0 {
			return
		}
		checkSplit(t, int64(off32), int64(n16))
		r.t, r.store.t = t, t
		runScript(t, r, b, int64(off32), int64(n16), script)
	})
}

func checkSplit(t *testing.T, off, n int64) {
	p := split(off, n)
	at, whole, partial := int64(0), uint64(0), uint64(0)
	for i := range p.blocks() {
		b := p.block(i)
		if b.at != at || int64(b.lba)*kvstore.BlockSize+int64(b.from) != off+at || b.to <= b.from || b.to > kvstore.BlockSize {
			t.Fatalf("split(%d, %d) block %d: %+v", off, n, i, b)
		}
		if b.whole() {
			whole++
		} else {
			if p.edge(partial) != b {
				t.Fatalf("edge %d is %+v, want %+v", partial, p.edge(partial), b)
			}
			partial++
		}
		at += int64(b.to - b.from)
	}
	if at != n || whole != p.count || partial != p.edges() {
		t.Fatalf("split(%d, %d) covers %d bytes in %d whole and %d partial blocks: %+v", off, n, at, whole, partial, p)
	}
}

const scriptSize = 8 * kvstore.BlockSize

// scriptBuffers are shared by all scripts: what the disk should hold, what is written
// and what was read.
type scriptBuffers struct{ want, data, got [scriptSize]byte }

// read is what the rig's read is, without new memory.
func (b *scriptBuffers) read(r *rig, v *Volume, off, n int64) []byte {
	got := b.got[:n]
	copy(got, garbled[:])
	must(r.t, r.do(Request{Kind: Read, Vol: v, Off: off, Data: got}))
	return got
}

// garbled is what no read may leave.
var garbled = [scriptSize]byte(bytes.Repeat([]byte{0xee}, scriptSize))

// runScript does what the script says to a small volume and to a []byte.
func runScript(t *testing.T, r *rig, b *scriptBuffers, shift, length int64, script []byte) {
	// To open a volume anew takes longer than all else that a script does: few do, once.
	const size, maxSteps, maxOpens = scriptSize, 32, 1
	opens := 0
	v := r.set.opened("v")
	if v == nil {
		v = r.open("v")
	}
	must(t, r.do(Request{Kind: Discard, Vol: v, N: size}))
	want := b.want[:]
	clear(want)
	for step := 0; len(script) >= 4 && step < maxSteps; step, script = step+1, script[4:] {
		off := (int64(script[1])<<8 | int64(script[2])) * 16 % size
		off = (off + shift%17) % size
		n := min(1+length*int64(script[3])/64, size-off)
		switch script[0] % 6 {
		case 0, 1:
			data := fillPattern(b.data[:n], script[3])
			if script[0]&64 != 0 {
				clear(data)
			}
			r.write(v, off, data)
			copy(want[off:], data)
		case 2:
			must(t, r.do(Request{Kind: Discard, Vol: v, Off: off, N: n}))
			clear(want[off : off+n])
		case 3:
			must(t, r.do(Request{Kind: Zero, Vol: v, Off: off, N: n}))
			clear(want[off : off+n])
		case 4:
			r.flush(v)
			r.reap(v)
		case 5:
			if script[3]%8 == 0 && opens < maxOpens {
				opens++
				must(t, v.Close(ctx)) // deletes and stores what is left
				v = r.open("v")
			}
		}
		if got := b.read(r, v, off, n); !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("step %d: %s", step, firstDiff(got, want[off:off+n]))
		}
	}
	if got := b.read(r, v, 0, size); !bytes.Equal(got, want) {
		t.Fatal(firstDiff(got, want))
	}
}
