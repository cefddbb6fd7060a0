// Package chain brings a volume up to a mounted file system, link by link, and
// down again: store mount, volume, device, file system, mount point.
//
// # The nouns
//
//   - A link is one of these steps. What a link needs is made by the one before.
//   - A daemon serves a store in a directory. Up uses one that runs already, or
//     starts one on a private directory of its own, RUNTIME/mnt/HASH; Down stops
//     only those.
//   - A record, RUNTIME/up/NAME.json, says what Up did for a volume. It is written
//     before each step, so a later run knows what an earlier one left behind when
//     it was killed. It lies on tmpfs and is gone with the machine.
//   - What is dead: a FUSE mount without a daemon, a device on such a mount, a file
//     system on such a device. All of it answers with errors only, and is put
//     aside before anything is made anew.
//
// # The flow
//
// Up looks (observe.go), refuses what it must not touch (judge), puts aside what
// is dead (repair.go), and makes the links that are missing (up.go, rootless.go).
// Each link that this run makes leaves an undo; an error or the end of the context
// runs them in reverse. Down looks in the same way, refuses while something is in
// use, and takes the links away from the top (down.go).
//
// Everything that touches the machine goes through the interface system, so tests
// run on a machine that is made up (fake_test.go).
//
// # Locks, in their order
//
// An flock on RUNTIME/up/NAME.lock for the time of Up and Down of one volume; then
// one on RUNTIME/mnt/HASH.lock while the mount of a store is looked for, started
// or stopped, so that one volume's Down does not stop what another one's Up found.
// Children inherit the lock under which they were started.
package chain

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// DefaultSize is the size of a volume that Up makes without being told one, in
// bytes. Volumes are thin: it costs nothing.
const DefaultSize = 10 << 30

// DefaultFS is what Up makes on an empty volume.
const DefaultFS = "ext4"

// ErrUsage: the user has to say more, or something else; exit status 2.
var ErrUsage = errors.New("bad usage")

// usage makes an error that is ErrUsage and reads as the text alone.
type usage string

func usagef(format string, args ...any) error { return usage(fmt.Sprintf(format, args...)) }

func (u usage) Error() string        { return string(u) }
func (u usage) Is(target error) bool { return target == ErrUsage }

// namePattern is what a volume may be called.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkName(name string) error {
	if !namePattern.MatchString(name) {
		return usagef("%q is not a volume name: 1 to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit", name)
	}
	return nil
}

// Request of Up.
type Request struct {
	Name  string
	Store string // as the user gave it; empty: the default one
	At    string // mount point of the file system; made if it is missing
	// Size of the volume in bytes. 0: DefaultSize for a new one, any for one that
	// exists.
	Size int64
	// FS is ext4, xfs or btrfs. Empty: what is there, DefaultFS on an empty volume.
	FS          string
	MkfsOptions []string
	// Rootless uses no loop device and no mount of the kernel's own.
	Rootless bool
	// Dangerous uses a store that may lose data as it is set up.
	Dangerous bool
	// MountFlags are further flags of `kvbfs mount`, if the store is not mounted yet.
	MountFlags []MountFlag
}

// MountFlag is a flag of `kvbfs mount` that a running mount has, or has not.
type MountFlag struct {
	Text string
	// In says whether a mount was started with what the flag asks for.
	In func(daemon.Caching) bool
}

// texts are the flags as they are written.
func texts(flags []MountFlag) (out []string) {
	for _, f := range flags {
		out = append(out, f.Text)
	}
	return out
}

func (r Request) dangerous() []string {
	if r.Dangerous {
		return []string{"--dangerous"}
	}
	return nil
}

// Result is what Up and Down found or made, for --json.
type Result struct {
	Name   string `json:"name"`
	Store  string `json:"store,omitempty"` // masked
	Dir    string `json:"dir,omitempty"`   // where the store is mounted
	Device string `json:"device,omitempty"`
	At     string `json:"at,omitempty"`
	FS     string `json:"fs,omitempty"`
	// Already: there was nothing to do.
	Already bool `json:"already"`
	// CreatedVolume, MadeFS, StartedMount: what this run made.
	CreatedVolume bool `json:"created_volume,omitempty"`
	MadeFS        bool `json:"made_fs,omitempty"`
	StartedMount  bool `json:"started_mount,omitempty"`
	// Ignored are flags without effect, as the store was mounted without them.
	Ignored []string `json:"ignored_flags,omitempty"`
	// Repaired says what was found dead and put aside.
	Repaired []string `json:"repaired,omitempty"`
	// Left says what Down left alone because others use it.
	Left []string `json:"left,omitempty"`
}

// Chain does it. Not for concurrent use; other processes may run one each.
type Chain struct {
	// Progress is told each step, Notice what the user should know in any case.
	Progress, Notice func(format string, args ...any)

	runtime  string // private directory on tmpfs
	sys      system
	undos    []undo
	patience time.Duration // how long a step may wait before Notice is told why
}

// New returns a Chain on this machine.
func New(progress, notice func(format string, args ...any)) (*Chain, error) {
	dir, err := stack.RuntimeDir()
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return newChain(dir, &machine{exe: exe, scratch: dir, held: -1}, progress, notice)
}

func newChain(runtime string, sys system, progress, notice func(string, ...any)) (*Chain, error) {
	silent := func(string, ...any) {}
	if progress == nil {
		progress = silent
	}
	if notice == nil {
		notice = silent
	}
	for _, dir := range []string{"up", "mnt"} {
		if err := os.MkdirAll(filepath.Join(runtime, dir), 0o700); err != nil {
			return nil, err
		}
	}
	return &Chain{Progress: progress, Notice: notice, runtime: runtime, sys: sys, patience: patience}, nil
}

// privateDir is where Up mounts a store that nobody else has mounted.
func (c *Chain) privateDir(store string) string {
	sum := sha256.Sum256([]byte(store))
	return filepath.Join(c.runtime, "mnt", hex.EncodeToString(sum[:6]))
}

// ours says whether a directory was made by privateDir.
func (c *Chain) ours(dir string) bool { return filepath.Dir(dir) == filepath.Join(c.runtime, "mnt") }

// check completes a request and refuses what can be refused without looking.
func (r *Request) check() (store string, err error) {
	if err := checkName(r.Name); err != nil {
		return "", err
	}
	if r.At == "" {
		return "", usagef("say where to mount the file system: --at DIR")
	}
	if r.At, err = resolve(r.At); err != nil {
		return "", err
	}
	if r.At == "/" {
		return "", usagef("--at / would hide everything")
	}
	if r.FS != "" && !slices.Contains(fsNames(), r.FS) {
		return "", usagef("--fs %s: kvbfs makes ext4, xfs and btrfs", r.FS)
	}
	if r.Rootless && r.FS != "" && r.FS != "ext4" {
		return "", usagef("--fs %s needs the kernel: --rootless knows ext4 only", r.FS)
	}
	if r.Store == "" {
		r.Store, _ = stack.DefaultURL()
	}
	store, err = stack.Canonical(r.Store)
	if err != nil {
		return "", usage(err.Error())
	}
	return store, nil
}

// resolve spells a mount point as the mount table does: absolute, its parents
// without symlinks. A mount point that is itself a symlink is refused.
func resolve(at string) (string, error) {
	at, err := filepath.Abs(at)
	if err != nil || at == "/" {
		return at, err
	}
	parent := filepath.Dir(at)
	if real, err := filepath.EvalSymlinks(parent); err == nil {
		at = filepath.Join(real, filepath.Base(at))
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if target, err := os.Readlink(at); err == nil {
		return "", usagef("%s is a symlink: name %s itself", at, target)
	}
	return at, nil
}

// undo takes back one link that this run made.
type undo struct {
	what string
	do   func(context.Context) error
	// carried: what was made before carries it and stays while it is there.
	carried bool
}

// onFailure remembers how to take something back. It is registered before the
// thing is made, so do must accept that it is not there.
func (c *Chain) onFailure(what string, do func(context.Context) error) {
	c.undos = append(c.undos, undo{what, do, true})
}

// onFailureAlone is onFailure for what the rest does not carry: that is taken back
// even if this cannot be.
func (c *Chain) onFailureAlone(what string, do func(context.Context) error) {
	c.undos = append(c.undos, undo{what, do, false})
}

// rollback takes everything back, the last first. It stops where something stays
// that the rest carries: below a file system that is still mounted nothing is wiped,
// detached or removed. It reports whether all was taken back.
func (c *Chain) rollback(ctx context.Context, name string) (clean bool) {
	undos := c.undos
	c.undos, clean = nil, true
	for i, u := range slices.Backward(undos) {
		c.Progress("undo: %s", u.what)
		err := u.do(ctx)
		if err == nil {
			continue
		}
		clean = false
		if !u.carried || i == 0 {
			c.Notice("could not undo: %s: %v; see to that and run `kvbfs down %s`", u.what, err, name)
			continue
		}
		var rest []string
		for _, below := range slices.Backward(undos[:i]) {
			rest = append(rest, below.what)
		}
		c.Notice("could not undo: %s: %v; so this is not done either: %s. End what uses it and run `kvbfs down %s`",
			u.what, err, strings.Join(rest, ", "), name)
		return false
	}
	return clean
}
