package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWholeReplies: a request is answered in its whole length. A loop device makes
// an error of a short write after half of it was done, and zeros of a short read.
func TestWholeReplies(t *testing.T) { newRig(t, nil).child("whole") }

func wholeScenario(dir string, _ []string) error {
	f, err := os.OpenFile(filepath.Join(dir, testVolume), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, n := range []int{512, 4096, 8192, 128 << 10} {
		buf := alignedBuffer(n)
		for i := range buf {
			buf[i] = byte(i)
		}
		// Not os.File, which goes on after a short write.
		if done, err := unix.Pwrite(int(f.Fd()), buf, 0); done != n || err != nil {
			return fmt.Errorf("pwrite of %d bytes: %d, %v", n, done, err)
		}
		if done, err := unix.Pread(int(f.Fd()), buf, 0); done != n || err != nil {
			return fmt.Errorf("pread of %d bytes: %d, %v", n, done, err)
		}
	}
	return nil
}
