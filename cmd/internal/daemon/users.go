package daemon

import (
	"strings"

	"github.com/kvbfs/kvbfs/losetup"
)

// devicesOn lists the loop devices on images of a mount. It reads sysfs only and
// never touches the mount.
func devicesOn(dir string) []losetup.Device {
	out := []losetup.Device{}
	all, err := losetup.List()
	if err != nil {
		return out // no loop driver, no loop device
	}
	for _, d := range all {
		if strings.HasPrefix(d.Backing, dir+"/") {
			out = append(out, d)
		}
	}
	return out
}
