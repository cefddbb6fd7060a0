package losetup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// setting is a queue attribute that suits a disk whose blocks live elsewhere.
type setting struct {
	name  string
	want  int64
	limit string // attribute with the largest value allowed; "" for none
	back  string // what Detach writes where the device cannot be made anew
	why   string // what is lost when the kernel refuses
}

var settings = []setting{
	// Large requests are split into batches below; fewer system calls above.
	{"queue/max_sectors_kb", 1024, "queue/max_hw_sectors_kb", "0", "large requests are split more often"},
	// Write-back throttling aims at reads of 2 ms and strangles writes when the
	// store, not the disk, sets the pace.
	{"queue/wbt_lat_usec", 0, "", "-1", "writes may be throttled"},
	// A discard of 4 GiB would keep the device's only worker from its next flush.
	{"queue/discard_max_bytes", 64 << 20, "queue/discard_max_hw_bytes", "", "large discards delay flushes"},
	// The kernel's 128 KiB are meant for disks without a network in between. Last,
	// because the kernel computes it anew whenever one of the others changes.
	{"queue/read_ahead_kb", 1024, "", "128", "sequential reads are slower"},
}

// tune makes the queue settings and tells warn what was refused.
func tune(number int, readOnly bool, warn func(string)) {
	if warn == nil {
		warn = func(string) {}
	}
	for _, s := range settings {
		want := s.want
		if s.limit != "" {
			limit, err := number64(number, s.limit)
			if err == nil {
				want = min(want, limit)
			}
			if err == nil && limit == 0 && s.name == "queue/discard_max_bytes" {
				if !readOnly {
					warn(fmt.Sprintf("%s: no discard: the file system below offers none, or its statfs fails", devicePath(number)))
				}
				continue
			}
		}
		if have, err := number64(number, s.name); err == nil && have == want {
			continue
		}
		err := os.WriteFile(sysPath(number, s.name), []byte(strconv.FormatInt(want, 10)), 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EINVAL) && s.name == "queue/wbt_lat_usec" {
			continue // the kernel was built without it
		}
		if err != nil {
			warn(fmt.Sprintf("%s: %s stays as it is (%v): %s", devicePath(number), s.name, err, s.why))
		}
	}
}

// untune writes back the kernel's usual values, as far as it lets us.
func untune(number int) {
	for _, s := range settings {
		if s.back != "" {
			_ = os.WriteFile(sysPath(number, s.name), []byte(s.back), 0)
		}
	}
}
