package file

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A record's file is: "KVR1", CRC32C of the rest (4 bytes), sequence (8 bytes,
// big-endian), value. The sequence is the record's version: it begins at random,
// so that a record that was deleted and made again is another one, and rises by
// one with each swap.
const (
	recordMagic  = "KVR1"
	recordHeader = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// control implements kvstore.Control. Reading takes no lock, because files are
// replaced as a whole.
type control struct{ store *Store }

// fileName spells a record's name as a file name: letters, digits, '-', '_', ':'
// and inner dots stay, all else becomes %XX. So no name can leave the directory
// or be taken for the temporary file, which begins with a dot.
func fileName(name string) (string, error) {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == ':':
			b.WriteByte(c)
		case c == '.' && i > 0:
			b.WriteByte(c)
		case c <= ' ' || c >= 0x7f:
			return "", kvstore.ErrInvalid // as memcached, so that nothing works here only
		default:
			const hex = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	if b.Len() == 0 || b.Len() > 250 { // NAME_MAX is 255
		return "", kvstore.ErrInvalid
	}
	return b.String(), nil
}

// readRecord reads and checks a record's file.
func (s *Store) readRecord(name string) (version uint64, value []byte, err error) {
	file, err := fileName(name)
	if err != nil {
		return 0, nil, err
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, recordDir, file))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil, kvstore.ErrAbsent
	case err != nil:
		return 0, nil, classify(err, kvstore.ErrUnreachable)
	case len(raw) < recordHeader || string(raw[:4]) != recordMagic,
		binary.BigEndian.Uint32(raw[4:]) != crc32.Checksum(raw[8:], castagnoli):
		return 0, nil, kvstore.ErrCorrupt
	}
	return binary.BigEndian.Uint64(raw[8:]), raw[recordHeader:], nil
}

// writeRecord replaces a record's file. Called under the lock.
func (s *Store) writeRecord(name string, version uint64, value []byte) error {
	file, err := fileName(name)
	if err != nil {
		return err
	}
	raw := make([]byte, recordHeader, recordHeader+len(value))
	copy(raw, recordMagic)
	binary.BigEndian.PutUint64(raw[8:], version)
	raw = append(raw, value...)
	binary.BigEndian.PutUint32(raw[4:], crc32.Checksum(raw[8:], castagnoli))
	return classify(s.replaceFile(filepath.Join(s.dir, recordDir), file, raw), kvstore.ErrUnreachable)
}

// valid checks what a caller gave.
func (c control) valid(ctx context.Context, server int, name string, size int) error {
	if err := c.store.usable(ctx); err != nil {
		return err
	}
	if _, err := fileName(name); err != nil || server != 0 || size > kvstore.MaxRecord {
		return kvstore.ErrInvalid
	}
	return nil
}

// Get reads a record.
func (c control) Get(ctx context.Context, server int, name string) (kvstore.Record, error) {
	err := c.valid(ctx, server, name, 0)
	if err == nil {
		var rec kvstore.Record
		if rec.Version, rec.Value, err = c.store.readRecord(name); err == nil {
			return rec, nil
		}
	}
	return kvstore.Record{}, c.store.failed("get record", name, err)
}

// Add creates a record, and the store's directory if it is not there yet.
func (c control) Add(ctx context.Context, server int, name string, value []byte) error {
	err := c.valid(ctx, server, name, len(value))
	if err == nil {
		err = c.store.locked(ctx, true, func() error {
			switch _, _, err := c.store.readRecord(name); {
			case err == nil:
				return kvstore.ErrExists
			case !errors.Is(err, kvstore.ErrAbsent):
				return err
			}
			return c.store.writeRecord(name, rand.Uint64(), value)
		})
	}
	if err != nil {
		return c.store.failed("add record", name, err)
	}
	return nil
}

// Swap replaces the record that old was read from.
func (c control) Swap(ctx context.Context, server int, name string, old kvstore.Record, value []byte) error {
	err := c.valid(ctx, server, name, len(value))
	if err == nil {
		err = c.store.locked(ctx, false, func() error {
			switch version, _, err := c.store.readRecord(name); {
			case err != nil:
				return err
			case version != old.Version:
				return kvstore.ErrConflict
			}
			return c.store.writeRecord(name, old.Version+1, value)
		})
	}
	if err != nil {
		return c.store.failed("swap record", name, err)
	}
	return nil
}

// Delete removes a record.
func (c control) Delete(ctx context.Context, server int, name string) error {
	err := c.valid(ctx, server, name, 0)
	if err == nil {
		err = c.store.locked(ctx, false, func() error {
			file, err := fileName(name)
			if err != nil {
				return err
			}
			dir := filepath.Join(c.store.dir, recordDir)
			if err := os.Remove(filepath.Join(dir, file)); errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return classify(err, kvstore.ErrUnreachable)
			}
			return classify(c.store.syncDir(dir), kvstore.ErrUnreachable)
		})
	}
	if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
		return c.store.failed("delete record", name, err)
	}
	return nil
}
