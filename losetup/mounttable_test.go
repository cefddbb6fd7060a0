package losetup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMountTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	text := "36 35 7:3 / /mnt/with\\040blank rw,nosuid shared:1 - ext4 /dev/loop3 rw\n" +
		"37 35 0:50 / /mnt/b rw - btrfs /dev/loop4 rw\nshort line\n" +
		"38 35 0:51 / /mnt/b rw,nodev - fuse.x x\\134y rw\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := readMounts(file)
	want := []Mount{
		{"7:3", "/mnt/with blank", "rw,nosuid", "ext4", "/dev/loop3"},
		{"0:50", "/mnt/b", "rw", "btrfs", "/dev/loop4"},
		{"0:51", "/mnt/b", "rw,nodev", "fuse.x", `x\y`},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if m, ok := MountAt(got, "/mnt/b"); !ok || !m.FUSE() {
		t.Errorf("At: %+v %t, want the last one", m, ok)
	}
	if _, ok := MountAt(got, "/mnt"); ok {
		t.Error("At found a mount where none is")
	}
	if own := MountTable(); len(own) == 0 {
		t.Error("the own mount table is empty")
	}
}
