package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// record is what Up did, or was about to do, for one volume.
type record struct {
	Version  int    `json:"version"`
	Name     string `json:"name"`
	Store    string `json:"store"` // canonical and masked
	Dir      string `json:"dir"`   // where the store is mounted
	Device   string `json:"device,omitempty"`
	At       string `json:"at"`
	FS       string `json:"fs,omitempty"`
	Rootless bool   `json:"rootless,omitempty"`
	// Fuse2fs is the process that serves At without root.
	Fuse2fs int `json:"fuse2fs_pid,omitempty"`
	// Made are the directories that Up made for At, the outermost first.
	Made []string `json:"made,omitempty"`
	// Mkfs: a file system was being made on the volume with this image's inode number
	// and may be half there.
	Mkfs  bool   `json:"mkfs,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
}

const recordVersion = 1

func (c *Chain) recordPath(name string) string {
	return filepath.Join(c.runtime, "up", name+".json")
}

// load returns the record of a volume, nil if there is none.
func (c *Chain) load(name string) (*record, error) {
	b, err := os.ReadFile(c.recordPath(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || r.Version != recordVersion || r.Name != name {
		return nil, fmt.Errorf("%s was not written by this version of kvbfs: take the volume down by hand and remove it", c.recordPath(name))
	}
	return &r, nil
}

// save writes a record whole or not at all.
func (c *Chain) save(r *record) error {
	r.Version = recordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := c.recordPath(r.Name)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (c *Chain) forget(name string) error {
	err := os.Remove(c.recordPath(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// others are the names of the other volumes that are up on a mount.
func (c *Chain) others(name, dir string) []string {
	files, _ := os.ReadDir(filepath.Join(c.runtime, "up")) // a pattern would take signs of its path for its own
	var names []string
	for _, f := range files {
		other, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || other == name {
			continue
		}
		if r, err := c.load(other); err == nil && r != nil && r.Dir == dir {
			names = append(names, other)
		}
	}
	return names
}

// lock takes an flock on a file of the runtime directory. What waits is said. Until
// unlock is called, children inherit the lock: if we are killed, the next run waits
// until the mkfs or mount that we left running has ended.
func (c *Chain) lock(ctx context.Context, file, what string) (unlock func(), err error) {
	fd, err := unix.Open(filepath.Join(c.runtime, file), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(c.runtime, file), Err: err}
	}
	for told := false; ; {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			before := c.sys.Hold(fd)
			return func() { c.sys.Hold(before); unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return nil, err
		}
		if !told {
			told = true
			c.Progress("waiting for another kvbfs that works on %s", what)
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Chain) lockVolume(ctx context.Context, name string) (func(), error) {
	return c.lock(ctx, filepath.Join("up", name+".lock"), name)
}

func (c *Chain) lockStore(ctx context.Context, store string) (func(), error) {
	return c.lock(ctx, filepath.Join("mnt", filepath.Base(c.privateDir(store))+".lock"), store)
}
