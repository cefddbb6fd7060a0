package chain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/losetup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDeviceOf(t *testing.T) {
	devices := []losetup.Device{
		{Path: "/dev/loop1", Backing: "/mnt/a/vol"},
		{Path: "/dev/loop2", Backing: "/mnt/b/vol"},
		{Path: "/dev/loop3", Backing: "/elsewhere/vol"},
		{Path: "/dev/loop4", Backing: "/mnt/a/volume"},
		{Path: "/dev/loop5", Backing: "/gone"}, // its mount was lazily unmounted
		{Path: "/dev/loop6", Backing: "/works"},
		{Path: "/dev/loop7", Backing: "/etc"}, // to be seen
		{Path: "/dev/loop8", Backing: "/hangs"},
	}
	hangs := errors.New("does not answer")
	answers := func(_ context.Context, device string) error {
		switch device {
		case "/dev/loop5", "/dev/loop7":
			return syscall.EIO
		case "/dev/loop8":
			return hangs
		}
		return nil
	}
	mounts := []daemon.Mount{{Dir: "/mnt/a"}, {Dir: "/mnt/b"}}
	for _, tt := range []struct {
		name   string
		mounts []daemon.Mount
		rec    *record
		want   string
		err    error
	}{
		{"vol", mounts, nil, "", ErrUsage},
		{"vol", mounts[:1], nil, "/dev/loop1", nil},
		{"gone", mounts, nil, "/dev/loop5", nil},
		{"works", mounts, nil, "", ErrUsage},
		{"works", mounts, &record{Device: "/dev/loop6"}, "/dev/loop6", nil},
		{"works", mounts, &record{Device: "/dev/loop5"}, "", ErrUsage},
		{"etc", mounts, nil, "", losetup.ErrNotAttached},
		{"hangs", mounts, nil, "", hangs},
		{"none", mounts, nil, "", losetup.ErrNotAttached},
	} {
		got, err := deviceOf(t.Context(), tt.name, devices, tt.mounts, tt.rec, answers)
		if !errors.Is(err, tt.err) || err == nil && got.Path != tt.want {
			t.Errorf("%s with %d mounts and record %v: %s, %v, want %s, %v", tt.name, len(tt.mounts), tt.rec, got.Path, err, tt.want, tt.err)
		}
	}
}

// A device is read itself, past the page cache, and says what is wrong with it.
func TestAnswers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, make([]byte, 3*probeBlock), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&machine{}).Answers(t.Context(), file); err != nil && !errors.Is(err, syscall.EINVAL) { // no direct I/O on this disk
		t.Error(err)
	}
	if err := (&machine{}).Answers(t.Context(), file+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
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
