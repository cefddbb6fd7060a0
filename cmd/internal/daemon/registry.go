package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// ErrMounted: another daemon serves this mount point already.
var ErrMounted = errors.New("mounted already")

// entry is this process's own place in the registry.
type entry struct {
	file *os.File // holds the flock until release
	base string   // path without its extension
}

// mountsDir returns RuntimeDir/mounts, made if absent.
func mountsDir() (string, error) {
	run, err := stack.RuntimeDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(run, "mounts")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// maxSocketPath is what sockaddr_un holds, less its closing zero (unix(7)).
const maxSocketPath = 107

// basePath returns the registry path of a mount point, without extension.
func basePath(dir string) (string, error) {
	mounts, err := mountsDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(dir))
	base := filepath.Join(mounts, hex.EncodeToString(sum[:8]))
	if n := len(base + ".sock"); n > maxSocketPath {
		return "", fmt.Errorf("the path of the runtime directory is %d bytes too long for a socket in it (%s.sock): KVBFS_RUNTIME_DIR names another place",
			n-maxSocketPath, base)
	}
	return base, nil
}

// claim enters m, not ready yet, into the registry: ErrMounted if a live daemon
// has the same mount point.
func claim(m Mount) (*entry, error) {
	base, err := basePath(m.Dir)
	if err != nil {
		return nil, err
	}
	// A reader that looks whether we live holds the lock for a moment, and one that
	// removes a dead entry takes the file away: so try again, for a short time.
	for deadline := time.Now().Add(2 * time.Second); ; {
		f, err := os.OpenFile(base+".json", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if locked(f) && current(f) {
			e := &entry{file: f, base: base}
			if err := e.write(m); err != nil {
				e.release()
				return nil, err
			}
			return e, nil
		}
		other, _ := read(f)
		f.Close()
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s is %w by process %d (store %s)", m.Dir, ErrMounted, other.PID, other.Store)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// locked takes the flock without waiting.
func locked(f *os.File) bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }

// current says whether f is still the file at its path.
func current(f *os.File) bool {
	var here, there unix.Stat_t
	return unix.Fstat(int(f.Fd()), &here) == nil && unix.Stat(f.Name(), &there) == nil &&
		here.Ino == there.Ino && here.Dev == there.Dev
}

func read(f *os.File) (m Mount, err error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// write puts m into the file. Readers see the old or the new text: the new one
// is written in one call and padded so that it is never shorter.
func (e *entry) write(m Mount) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if fi, err := e.file.Stat(); err == nil && int64(len(data)) < fi.Size() {
		data = append(data, strings.Repeat(" ", int(fi.Size())-len(data))...)
	}
	_, err = e.file.WriteAt(data, 0)
	return err
}

// release takes the entry out of the registry. The log stays.
func (e *entry) release() {
	// In this order: while the lock is held nobody else can have made a new file
	// or socket at these paths.
	_ = os.Remove(e.base + ".sock")
	_ = os.Remove(e.base + ".json")
	_ = e.file.Close()
}

// registered lists the live daemons, also those that are still starting, sorted
// by mount point, and removes dead entries.
func registered() ([]Mount, error) {
	dir, err := mountsDir()
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir) // a pattern would take signs of dir itself for its own
	if err != nil {
		return nil, err
	}
	var out []Mount
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		if m, ok := look(filepath.Join(dir, f.Name())); ok {
			out = append(out, m)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Dir < out[j].Dir })
	return out, nil
}

// look reads one registry file; ok is false if its daemon is dead, or so young
// that it has written nothing yet.
func look(path string) (m Mount, ok bool) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return m, false
	}
	if locked(f) {
		if current(f) {
			e := &entry{file: f, base: strings.TrimSuffix(path, ".json")}
			e.release()
			return m, false
		}
		f.Close()
		return m, false
	}
	defer f.Close()
	m, err = read(f)
	return m, err == nil && m.Dir != ""
}

// alive says whether the daemon of m still holds its registry entry.
func alive(m Mount) bool {
	base := strings.TrimSuffix(m.Socket, ".sock")
	now, ok := look(base + ".json")
	return ok && now.PID == m.PID && now.Started.Equal(m.Started)
}

// WaitGone waits until the daemon of m has ended, at most for d.
func WaitGone(ctx context.Context, m Mount, d time.Duration) bool {
	for deadline := time.Now().Add(d); alive(m); {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}
