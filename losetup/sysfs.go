package losetup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	goloop "github.com/freddierice/go-losetup"
)

// sysBlock is where the kernel shows its block devices.
const sysBlock = "/sys/block"

// sectorSize is the unit of /sys/block/*/size, whatever the device's block size.
const sectorSize = 512

// devicePath is the usual name of a device's node.
func devicePath(number int) string { return fmt.Sprintf(goloop.DeviceFormatString, number) }

func sysPath(number int, rest ...string) string {
	return filepath.Join(append([]string{sysBlock, "loop" + strconv.Itoa(number)}, rest...)...)
}

// numberOf understands "/dev/loop3", "loop3" and symlinks to the former.
func numberOf(device string) (int, error) {
	if n, ok := loopNumber(filepath.Base(device)); ok && (filepath.Dir(device) == "/dev" || !strings.Contains(device, "/")) {
		return n, nil
	}
	// Only device nodes and the like are named here, never images: following
	// the links is safe.
	if real, err := filepath.EvalSymlinks(device); err == nil && filepath.Dir(real) == "/dev" {
		if n, ok := loopNumber(filepath.Base(real)); ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s is not a loop device: it should look like /dev/loop0", device)
}

func loopNumber(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "loop")
	if !ok || digits == "" || digits[0] == '+' || digits[0] == '-' {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// exists says whether the kernel has the device, attached or free.
func exists(number int) bool {
	_, err := os.Stat(sysPath(number))
	return err == nil
}

// attached says whether the device has a backing file. The directory "loop" of a
// device is made and removed with the attachment.
func attached(number int) bool {
	_, err := os.Stat(sysPath(number, "loop"))
	return err == nil
}

// List returns all attached devices in the order of their numbers. It reads
// sysfs only and never touches the backing files.
func List() ([]Device, error) {
	entries, err := os.ReadDir(sysBlock)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s: is sysfs mounted on /sys?", ErrNoLoop, sysBlock)
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		if n, ok := loopNumber(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	sort.Ints(numbers)
	var list []Device
	for _, n := range numbers {
		d, err := read(n)
		if errors.Is(err, ErrNotAttached) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// Get returns one device: ErrNotAttached if it has no backing file.
func Get(device string) (Device, error) {
	n, err := numberOf(device)
	if err != nil {
		return Device{}, err
	}
	return read(n)
}

// Find returns the devices of one file. It reads sysfs only and never touches
// the backing files; symlinks in file are followed down to the first FUSE mount,
// below which the path is taken as it is.
func Find(file string) ([]Device, error) {
	spelled, err := spelling(file)
	if err != nil {
		return nil, err
	}
	return findSpelled(spelled)
}

// findSpelled is Find for a path that is spelled as the kernel does.
func findSpelled(spelled string) ([]Device, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	var found []Device
	for _, d := range all {
		if d.Backing == spelled && !d.Deleted {
			found = append(found, d)
		}
	}
	return found, nil
}

// read collects a device from sysfs. Files that vanish meanwhile mean that it
// was just detached.
func read(number int) (Device, error) {
	notAttached := fmt.Errorf("%s: %w", devicePath(number), ErrNotAttached)
	backing, err := attribute(number, "loop/backing_file")
	if err != nil {
		if gone(err) {
			return Device{}, notAttached
		}
		return Device{}, err
	}
	d := Device{Path: devicePath(number)}
	d.Backing, d.Deleted = strings.CutSuffix(backing, " (deleted)")
	var size, blockSize, ro, dio, autoclear, offset, limit, ahead int64
	for _, a := range []struct {
		name string
		to   *int64
	}{
		{"size", &size},
		{"queue/logical_block_size", &blockSize},
		{"ro", &ro},
		{"loop/dio", &dio},
		{"loop/autoclear", &autoclear},
		{"loop/offset", &offset},
		{"loop/sizelimit", &limit},
		{"queue/read_ahead_kb", &ahead},
	} {
		*a.to, err = number64(number, a.name)
		if gone(err) {
			return Device{}, notAttached
		}
		if err != nil {
			return Device{}, err
		}
	}
	d.Size, d.BlockSize, d.ReadAhead = size*sectorSize, int(blockSize), int(ahead)
	d.ReadOnly, d.DirectIO, d.Autoclear = ro != 0, dio != 0, autoclear != 0
	d.partial = offset != 0 || limit != 0
	d.seq, _ = number64(number, "diskseq") // absent before Linux 5.15
	return d, nil
}

// gone says whether a sysfs file could not be read because the device or its
// attachment went away. Reading a file of a removed directory gives ENODEV or,
// for loop's own, EINVAL or ENXIO.
func gone(err error) bool {
	var p *fs.PathError
	return errors.Is(err, fs.ErrNotExist) || (errors.As(err, &p) && p.Op == "read")
}

func attribute(number int, name string) (string, error) {
	b, err := os.ReadFile(sysPath(number, name))
	if err != nil {
		return "", err
	}
	// One newline: a file name may end in white space.
	return strings.TrimSuffix(string(b), "\n"), nil
}

func number64(number int, name string) (int64, error) {
	s, err := attribute(number, name)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", sysPath(number, name), err)
	}
	return v, nil
}
