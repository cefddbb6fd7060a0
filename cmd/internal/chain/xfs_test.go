package chain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestXFSTwins: a mounted XFS of the same UUID is found, with who has it mounted,
// also where its device is dead and known by its image only.
func TestXFSTwins(t *testing.T) {
	dir := t.TempDir()
	put := func(path, content string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(path, target string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(name, number, uuid, image string) {
		put("dev/"+name, "XFSB"+strings.Repeat("\x00", 28)+uuid+strings.Repeat("\x00", 16))
		put("sys/fs/xfs/"+name+"/x", "")
		put("sys/class/block/"+name+"/dev", number+"\n")
		put("sys/class/block/"+name+"/loop/backing_file", image+"\n")
	}
	uuid := "0123456789abcdef"
	disk("loop1", "7:1", uuid, "/mnt/new/disk")
	disk("loop2", "7:2", "another uuid 16B", "/mnt/x/other")
	put("sys/fs/xfs/stats/x", "")
	link("proc/self/ns/mnt", "mnt:[1]")
	put("proc/self/mountinfo", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 7:2 / /other rw - xfs /dev/loop2 rw\n")
	link("proc/77/ns/mnt", "mnt:[2]")
	put("proc/77/comm", "holder\n")
	put("proc/77/mountinfo", "30 1 7:3 / /mnt/data rw - xfs /dev/loop3 rw\n")
	refused := func() string {
		err := xfsRefused(filepath.Join(dir, "dev/loop1"), "/mnt/data", filepath.Join(dir, "sys"), filepath.Join(dir, "proc"))
		if err == nil {
			return ""
		}
		return err.Error()
	}
	if got := refused(); got != "" {
		t.Error("no other has its UUID:", got)
	}
	disk("loop3", "7:3", uuid, "/disk")
	for _, want := range []string{"/dev/loop3", "/mnt/data", "process 77 (holder)", "nsenter -t 77 -m umount", "nouuid"} {
		if got := refused(); !strings.Contains(got, want) {
			t.Errorf("it does not say %q: %s", want, got)
		}
	}
	if strings.Contains(refused(), "dead") {
		t.Error("it lives")
	}
	if err := os.Remove(filepath.Join(dir, "dev/loop3")); err != nil {
		t.Fatal(err)
	}
	if got := refused(); !strings.Contains(got, "process 77 (holder), which is dead") {
		t.Error("a device that cannot be read:", got)
	}
	put("sys/class/block/loop3/loop/backing_file", "/unlike\n")
	if got := refused(); got != "" {
		t.Error("a dead device of another image:", got)
	}
}
