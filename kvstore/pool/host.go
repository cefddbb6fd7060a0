package pool

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// hostID names a machine as far as leases go: one kernel boot and one runtime
// directory. Containers of one kernel that do not share the runtime directory
// cannot see each other's locks, so they count as different machines.
type hostID struct {
	host [16]byte // random, kept in RuntimeDir/host-id
	boot [16]byte // the kernel's boot id
}

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// readHostID returns this machine's id and makes it if it is the first time
// since boot. Without a runtime directory every Pool is a machine of its own.
func readHostID(runtimeDir string) (hostID, error) {
	var h hostID
	text, err := os.ReadFile(bootIDFile)
	if err != nil {
		return h, fmt.Errorf("this machine's boot id: %w", err)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(raw) != 16 {
		return h, fmt.Errorf("this machine's boot id in %s is %q, not 16 hexadecimal bytes", bootIDFile, text)
	}
	h.boot = [16]byte(raw)
	if runtimeDir == "" {
		h.host = newID()
		return h, nil
	}
	h.host, err = readOrMakeID(filepath.Join(runtimeDir, "host-id"))
	return h, err
}

// readOrMakeID reads a file of 32 hexadecimal digits. Whoever links it first
// makes it; everybody else reads that one.
func readOrMakeID(path string) ([16]byte, error) {
	for range 3 {
		text, err := os.ReadFile(path)
		if err == nil {
			raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
			if err != nil || len(raw) != 16 {
				return [16]byte{}, fmt.Errorf("host id in %s is damaged: stop all daemons of kvbfs and remove it", path)
			}
			return [16]byte(raw), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return [16]byte{}, err
		}
		id := newID()
		if err := linkNew(path, []byte(hex.EncodeToString(id[:])+"\n")); err != nil && !errors.Is(err, fs.ErrExist) {
			return [16]byte{}, err
		}
	}
	return [16]byte{}, fmt.Errorf("host id in %s appears and vanishes", path)
}

// linkNew makes a file with its whole content at once, or fails with
// fs.ErrExist.
func linkNew(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".host-id-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// newID returns 16 random bytes. crypto/rand.Read never fails (Go 1.24).
func newID() [16]byte {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return id
}
