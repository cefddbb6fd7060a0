package volume

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// stateFile is the local state of a volume that is open for writing: one sparse
// file on tmpfs whose lock proves that this process alone writes on this machine,
// and whose shared mapping holds the presence map. A daemon that is killed leaves
// it behind with all that it had acknowledged and not yet flushed.
//
// The file has room for pool.MaxSize, so a volume grows without a new mapping.
// docs/format.md, "Local state", gives the layout.
type stateFile struct {
	f    *os.File
	path string
	mem  []byte // nil while there is no map
}

// The layout: where each array of words begins, in bytes.
const (
	stateVersion = 1
	stateHeader  = 4096

	maxBlocks = pool.MaxSize / kvstore.BlockSize
	maxPages0 = (maxBlocks + bitsPerPage - 1) / bitsPerPage
	maxPages1 = (maxPages0 + bitsPerPage - 1) / bitsPerPage
	pageBytes = wordsPerPage * 8

	level0Size  = (maxPages0*pageBytes + 4095) &^ 4095
	level1Size  = (maxPages1*pageBytes + 4095) &^ 4095
	flagsSize   = (maxPages0/8 + 8 + 4095) &^ 4095
	presentAt   = stateHeader
	level1At    = presentAt + level0Size
	level2At    = level1At + level1Size
	level3At    = level2At + 4096
	dirtyAt     = level3At + 4096
	queuedAt    = dirtyAt + flagsSize
	pendingAt   = queuedAt + flagsSize
	sequencesAt = pendingAt + level0Size
	stateSize   = sequencesAt + (maxPages0*8+4095)&^4095
)

var stateMagic = [8]byte{'K', 'V', 'B', 'F', 'S', 'M', 'A', 'P'}

// States of the file.
const (
	stateVoid uint32 = 0 // nothing to recover: being made, or stored and released
	stateOpen uint32 = 1 // holds what may not be stored yet
)

// stateHead is the header of the file.
type stateHead struct {
	boot       [16]byte
	pool       [16]byte
	volume     [16]byte
	layer      kvstore.LayerID
	holder     [16]byte
	generation uint64
}

// bootID identifies this boot of this machine.
func bootID() (id [16]byte) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		_, _ = hex.Decode(id[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")))
	}
	return id
}

func statePath(dir string, volume [16]byte) string {
	return filepath.Join(dir, hex.EncodeToString(volume[:])+".map")
}

// lockState opens and locks the state file of a volume, making it if need be.
// ErrInUse if another process, or another Set of this one, has it.
func lockState(dir string, volume [16]byte) (*stateFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := statePath(dir, volume)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			var b [stateHeader]byte
			_, _ = f.ReadAt(b[:], 0)
			_ = f.Close()
			return nil, fmt.Errorf("%w: process %d has %s", ErrInUse, binary.LittleEndian.Uint32(b[16:]), path)
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Whoever had it may have removed it between our open and our lock.
		var mine, now unix.Stat_t
		if unix.Fstat(int(f.Fd()), &mine) == nil && unix.Stat(path, &now) == nil && mine.Ino == now.Ino && mine.Dev == now.Dev {
			return &stateFile{f: f, path: path}, nil
		}
		_ = f.Close()
	}
}

// head reads the header; ok if the file holds something to recover.
func (s *stateFile) head() (h stateHead, ok bool) {
	var b [stateHeader]byte
	if n, err := s.f.ReadAt(b[:], 0); err != nil || n != len(b) || [8]byte(b[:8]) != stateMagic {
		return h, false
	}
	le := binary.LittleEndian
	h.layer, h.generation = kvstore.LayerID(le.Uint32(b[20:])), le.Uint64(b[24:])
	copy(h.boot[:], b[32:])
	copy(h.pool[:], b[48:])
	copy(h.volume[:], b[64:])
	copy(h.holder[:], b[80:])
	return h, le.Uint32(b[8:]) == stateVersion && le.Uint32(b[12:]) == stateOpen
}

// hasMap says whether the file has the size of one with a map.
func (s *stateFile) hasMap() bool {
	fi, err := s.f.Stat()
	return err == nil && fi.Size() == stateSize
}

// setHead writes the header.
func (s *stateFile) setHead(h stateHead, state uint32) error {
	var b [stateHeader]byte
	le := binary.LittleEndian
	copy(b[:], stateMagic[:])
	le.PutUint32(b[8:], stateVersion)
	le.PutUint32(b[12:], state)
	le.PutUint32(b[16:], uint32(os.Getpid()))
	le.PutUint32(b[20:], uint32(h.layer))
	le.PutUint64(b[24:], h.generation)
	copy(b[32:], h.boot[:])
	copy(b[48:], h.pool[:])
	copy(b[64:], h.volume[:])
	copy(b[80:], h.holder[:])
	_, err := s.f.WriteAt(b[:], 0)
	return err
}

// void notes that there is nothing to recover any more; unvoid the contrary.
func (s *stateFile) void() error   { return s.putState(stateVoid) }
func (s *stateFile) unvoid() error { return s.putState(stateOpen) }

func (s *stateFile) putState(state uint32) error {
	_, err := s.f.WriteAt(binary.LittleEndian.AppendUint32(nil, state), 12)
	return err
}

// mapping maps the file and returns the presence map in it. Its content is kept
// if keep is true, else it is empty.
func (s *stateFile) mapping(keep bool) (*presence, error) {
	if !keep {
		if err := s.f.Truncate(0); err != nil {
			return nil, err
		}
	}
	if err := s.f.Truncate(stateSize); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	// What is small is backed at once: touching a page that tmpfs has no room for
	// would end the process.
	for _, r := range [][2]int64{{0, stateHeader}, {level1At, pendingAt - level1At}} {
		if err := s.allocate(r[0], r[1]); err != nil {
			return nil, err
		}
	}
	mem, err := unix.Mmap(int(s.f.Fd()), 0, stateSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", s.path, err)
	}
	s.mem = mem
	words := func(at, size int) []uint64 {
		return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[at])), size/8)
	}
	return &presence{
		bits: [maxLevels + 1][]uint64{
			words(presentAt, level0Size), words(level1At, level1Size), words(level2At, 4096), words(level3At, 4096),
		},
		pending: words(pendingAt, level0Size),
		dirty:   words(dirtyAt, flagsSize),
		queued:  words(queuedAt, flagsSize),
		seq:     words(sequencesAt, stateSize-sequencesAt),
	}, nil
}

// back makes sure that the memory of level 0 page p exists before it is touched.
func (s *stateFile) back(p uint64) error {
	for _, r := range [][2]int64{
		{presentAt + int64(p)*pageBytes, pageBytes},
		{pendingAt + int64(p)*pageBytes, pageBytes},
		{sequencesAt + int64(p)*8, 8},
	} {
		if err := s.allocate(r[0], r[1]); err != nil {
			return err
		}
	}
	return nil
}

func (s *stateFile) allocate(at, n int64) error {
	err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, n)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, n)
	}
	// Not every file system has it; only where the directory is not on tmpfs.
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("no memory for the presence map: %s: %w", s.path, err)
	}
	return nil
}

// unlock closes the file and leaves it where it is, as a crash does. The map must
// not be used any more.
func (s *stateFile) unlock() {
	if s.mem != nil {
		_ = unix.Munmap(s.mem)
		s.mem = nil
	}
	_ = s.f.Close()
}

// leave is unlock for who made nothing that must stay: a file of no worth goes.
func (s *stateFile) leave() {
	if s.worthless() {
		s.remove()
		return
	}
	s.unlock()
}

// worthless says that the file has nothing to recover: it is new, was not finished,
// is void, or is of another boot. Of other versions nobody knows.
func (s *stateFile) worthless() bool {
	var b [stateHeader]byte
	n, err := s.f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return false
	}
	le := binary.LittleEndian
	boot := bootID()
	switch {
	case n < len(b), [8]byte(b[:8]) == [8]byte{}:
		return true
	case [8]byte(b[:8]) != stateMagic, le.Uint32(b[8:]) != stateVersion:
		return false
	}
	return le.Uint32(b[12:]) != stateOpen || [16]byte(b[32:48]) != boot
}

// remove ends the local state: there is nothing left to recover.
func (s *stateFile) remove() {
	_ = os.Remove(s.path)
	s.unlock()
}
