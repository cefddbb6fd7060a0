package chain

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// image makes a file system on a sparse file.
func image(t *testing.T, size int64, tool string, args ...string) reader {
	t.Helper()
	path, err := lookPath(tool)
	if err != nil {
		t.Skip(err)
	}
	name := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, append(args, name)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	return func(off int64, n int) ([]byte, error) {
		b := make([]byte, n)
		_, err := f.ReadAt(b, off)
		return b, err
	}
}

// The journal is found where the file systems say that it is.
func TestJournalOf(t *testing.T) {
	ext4, _ := fsNamed("ext4")
	xfs, _ := fsNamed("xfs")
	for _, c := range []struct {
		name  string
		fs    filesystem
		size  int64
		args  []string
		want  int64
		magic uint32
	}{
		{"small", ext4, 64 * mib, nil, 4 * mib, 0xc03b3998},
		{"usual", ext4, 10 << 30, nil, 64 * mib, 0xc03b3998},
		{"ours", ext4, 10 << 30, []string{"-J", "size=5"}, 5 * mib, 0xc03b3998},
		{"several extents", ext4, 20 << 30, []string{"-J", "size=1024"}, 1024 * mib, 0xc03b3998},
		{"small blocks", ext4, 64 * mib, []string{"-b", "1024"}, 4 * mib, 0xc03b3998},
		{"without", ext4, 64 * mib, []string{"-O", "^has_journal"}, 0, 0},
		{"xfs", xfs, 1 << 30, nil, 64 * mib, 0xfeedbabe},
	} {
		t.Run(c.name, func(t *testing.T) {
			read := image(t, c.size, c.fs.tool, append(slices.Clone(c.fs.options), c.args...)...)
			got, err := journalOf(c.fs.name, read)
			if err != nil || total(got) != c.want {
				t.Fatalf("journal %v, want %d bytes: %v", got, c.want, err)
			}
			if c.want == 0 {
				return
			}
			if head, _ := read(got[0].off, 4); binary.BigEndian.Uint32(head) != c.magic {
				t.Errorf("no journal at %d: %x", got[0].off, head)
			}
		})
	}
}

// Damage is an error or another place inside, never a panic.
func TestJournalOfDamaged(t *testing.T) {
	seed := storetest.Seed(t.Logf)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const size = 1 << 30
	for _, name := range []string{"ext4", "xfs"} {
		fs, _ := fsNamed(name)
		read := image(t, size, fs.tool, fs.options...)
		for range 3000 {
			got, err := journalOf(name, func(off int64, n int) ([]byte, error) {
				if off >= size {
					return nil, nil
				}
				b, err := read(off, min(n, int(size-off)))
				for range 1 + rnd.IntN(4) {
					at := rnd.IntN(len(b))
					if rnd.IntN(2) == 0 && len(b) == 1024 {
						at = 0xfd + rnd.IntN(80)
					}
					b[at] = byte(rnd.Uint32())
				}
				if rnd.IntN(8) == 0 {
					b = b[:rnd.IntN(len(b))]
				}
				return b, err
			})
			for _, s := range got {
				if err == nil && (s.off < 0 || s.n < 0) {
					t.Fatalf("%s: journal %v", name, got)
				}
			}
		}
	}
}

func TestJournalOptions(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		fs             string
		size, capacity int64
		user           []string
		want           []string
	}{
		{"ext4", 10 * gib, 64 * mib, nil, []string{"-J", "size=4"}},
		{"ext4", 10 * gib, gib, nil, []string{"-J", "size=32"}},
		{"ext4", 10 * gib, 100 * gib, nil, nil},
		{"ext4", 1024 * gib, 100 * gib, nil, []string{"-J", "size=128"}},
		{"ext4", 64 * mib, 64 * mib, nil, nil},
		{"ext4", 10 * gib, 0, nil, nil},
		{"ext4", 10 * gib, gib, []string{"-J", "size=7"}, nil},
		{"ext4", 10 * gib, gib, []string{"-O", "^has_journal"}, nil},
		{"xfs", 10 * gib, gib, nil, nil},
	} {
		if got := journalOptions(c.fs, c.size, c.capacity, c.user); !slices.Equal(got, c.want) {
			t.Errorf("%s of %d bytes, store of %d, %v: %v, want %v", c.fs, c.size, c.capacity, c.user, got, c.want)
		}
	}
}

// journalled is a machine whose mke2fs makes a journal of 7 blocks.
type journalled struct{ *fake }

func (f journalled) Tool(ctx context.Context, name string, args ...string) error {
	err := f.fake.Tool(ctx, name, args...)
	sb := f.head(args[len(args)-1])[1024:]
	le := binary.LittleEndian
	le.PutUint32(sb[4:], 1<<20) // blocks
	le.PutUint32(sb[24:], 2)    // of 4096 bytes
	le.PutUint32(sb[92:], 4)    // has a journal
	le.PutUint32(sb[0xe0:], 8)  // its inode
	sb[0xfd] = 1                // whose map follows
	le.PutUint16(sb[0x10c:], 0xf30a)
	le.PutUint16(sb[0x10e:], 1) // one extent
	le.PutUint16(sb[0x10c+16:], 7)
	le.PutUint32(sb[0x10c+20:], 5)
	return err
}

// Up gives the journal its room, goes on when there is none, and says so.
func TestUpMakesRoom(t *testing.T) {
	for _, answer := range []error{nil, syscall.ENOSPC, syscall.EOPNOTSUPP} {
		f := newFake()
		f.provisions, f.capacity = answer, 64*mib
		_, req := start(t, f)
		c, err := newChain(t.TempDir(), journalled{f}, nil, func(format string, args ...any) { f.said = append(f.said, fmt.Sprintf(format, args...)) })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Up(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		want := []span{{0, 4096}, {5 * 4096, 7 * 4096}}
		if answer == syscall.EOPNOTSUPP {
			want = want[:1]
		}
		if !slices.Equal(f.provisioned, want) || len(f.said) > 0 != (answer == syscall.ENOSPC) {
			t.Errorf("%v: provisioned %v, said %q", answer, f.provisioned, f.said)
		}
	}
}
