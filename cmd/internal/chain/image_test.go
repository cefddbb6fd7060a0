package chain

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/losetup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDevicesOf(t *testing.T) {
	devices := []losetup.Device{
		{Path: "/dev/loop1", Backing: "/mnt/a/vol"},
		{Path: "/dev/loop2", Backing: "/mnt/b/vol"},
		{Path: "/dev/loop3", Backing: "/elsewhere/vol"},
		{Path: "/dev/loop4", Backing: "/mnt/a/volume"},
		{Path: "/dev/loop5", Backing: "/gone"}, // its mount was lazily unmounted
	}
	mounts := []daemon.Mount{{Dir: "/mnt/a"}, {Dir: "/mnt/b"}}
	if _, err := only("vol", devicesOf("vol", devices, mounts)); !errors.Is(err, ErrUsage) {
		t.Errorf("two devices: %v, want ErrUsage", err)
	}
	if got, err := only("vol", devicesOf("vol", devices, mounts[:1])); err != nil || got.Path != "/dev/loop1" {
		t.Errorf("one device: %v, %v", got, err)
	}
	if got, err := only("gone", devicesOf("gone", devices, mounts)); err != nil || got.Path != "/dev/loop5" {
		t.Errorf("a device without its mount: %v, %v", got, err)
	}
	if _, err := only("none", devicesOf("none", devices, mounts)); !errors.Is(err, losetup.ErrNotAttached) {
		t.Errorf("no device: %v", err)
	}
}

func TestFindImage(t *testing.T) {
	t.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(t.TempDir(), "run"))
	if got, err := FindImage(t.Context(), "/some/image", "", ""); err != nil || got != "/some/image" {
		t.Errorf("a path: %s, %v", got, err)
	}
	if got, err := FindImage(t.Context(), "vol", "/mnt/a", ""); err != nil || got != "/mnt/a/vol" {
		t.Errorf("with a directory: %s, %v", got, err)
	}
	for _, args := range [][3]string{{"/some/image", "/mnt/a"}, {"bad name", ""}, {"..", ""}} {
		if _, err := FindImage(t.Context(), args[0], args[1], args[2]); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v, want ErrUsage", args, err)
		}
	}
	if _, err := FindImage(t.Context(), "vol", "", ""); err == nil || errors.Is(err, ErrUsage) {
		t.Errorf("nothing is mounted: %v, want a failure", err)
	}
}

func TestImageSize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, make([]byte, 12345), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := imageSize(t.Context(), file); err != nil || n != 12345 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := imageSize(t.Context(), filepath.Dir(file)); err == nil {
		t.Error("a directory is no image")
	}
	if _, err := imageSize(t.Context(), file+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing image: %v", err)
	}
}
