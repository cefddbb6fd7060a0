package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// Kernel versions with something that we use.
const (
	minKernel     = 504 // parallel direct writes and the locking that we rely on
	loopConfigure = 508 // LOOP_CONFIGURE: attach in one step
	uringKernel   = 614 // FUSE over io_uring
)

// kernelVersion reads "6.18.3-generic" as 618.
func kernelVersion(release string) (version int, ok bool) {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return 0, false
	}
	return major*100 + minor, true
}

func kernel() []Finding {
	r := report{area: "kernel"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		r.add(Warn, "version not known: "+err.Error(), "")
		return r.list
	}
	release := unix.ByteSliceToString(u.Release[:])
	v, ok := kernelVersion(release)
	switch {
	case !ok:
		r.add(Warn, "version "+release+" is not understood", "")
	case v < minKernel:
		r.add(Fail, "Linux "+release+" is too old", "Linux 5.4 or newer")
	case v < loopConfigure:
		r.add(Warn, "Linux "+release+": loop devices are attached in several steps", "Linux 5.8 or newer")
	default:
		r.add(OK, "Linux "+release+", asynchronous direct I/O over FUSE", "")
	}
	uring, err := os.ReadFile("/sys/module/fuse/parameters/enable_uring")
	switch {
	case err != nil && v < uringKernel:
		r.add(Info, "no FUSE over io_uring (Linux 6.14 has it): requests go through /dev/fuse", "")
	case err != nil:
		r.add(Info, "FUSE over io_uring is not built in: requests go through /dev/fuse", "")
	case strings.TrimSpace(string(uring)) == "Y":
		r.add(OK, "FUSE over io_uring is offered", "")
	default:
		r.add(Info, "FUSE over io_uring is there but off; requests go through /dev/fuse", "echo Y > /sys/module/fuse/parameters/enable_uring")
	}
	return r.list
}

func fuseDevice() []Finding {
	r := report{area: "fuse"}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		// Opening is harmless: a connection exists only once it is mounted.
		_ = unix.Close(fd)
		r.add(OK, "/dev/fuse can be opened", "")
	case unix.ENOENT:
		r.add(Fail, "/dev/fuse does not exist", "modprobe fuse; in a container: --device /dev/fuse")
	case unix.EACCES, unix.EPERM:
		// A setuid fusermount3 does not help: it opens it as the user.
		r.add(Fail, "/dev/fuse may not be opened by you: "+err.Error(), "chmod 666 /dev/fuse; in a container: --device /dev/fuse")
	case unix.ENXIO, unix.ENODEV:
		r.add(Fail, "/dev/fuse has no driver behind it", "modprobe fuse")
	default:
		r.add(Fail, "/dev/fuse: "+err.Error(), "")
	}
	return r.list
}

// setuidHelper returns the path of a fusermount3 that works for ordinary users.
func setuidHelper() string {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return ""
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode()&os.ModeSetuid == 0 {
		return ""
	}
	return path
}

func fuseUnprivileged() []Finding {
	r := report{area: "fuse"}
	root := os.Geteuid() == 0
	lack := Warn // what an ordinary user lacks
	if root {
		lack = Info // root mounts by itself
	}
	path, err := exec.LookPath("fusermount3")
	switch {
	case err != nil:
		r.add(lack, "no fusermount3: ordinary users cannot mount", "apt install fuse3, or your distribution's fuse3")
	case setuidHelper() == "":
		r.add(lack, path+" is not setuid root: ordinary users cannot mount", "chmod u+s "+path)
	default:
		r.add(OK, path+" is setuid: ordinary users can mount", "")
	}
	conf, _ := os.ReadFile("/etc/fuse.conf")
	allowed := false
	for line := range strings.Lines(string(conf)) {
		allowed = allowed || strings.TrimSpace(line) == "user_allow_other"
	}
	if allowed {
		r.add(OK, "user_allow_other is set: --allow-other works for ordinary users", "")
	} else {
		r.add(Info, "user_allow_other is not set: --allow-other works for root only", "echo user_allow_other >> /etc/fuse.conf")
	}
	n, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	clone, cloneErr := os.ReadFile("/proc/sys/kernel/unprivileged_userns_clone")
	if err != nil || strings.TrimSpace(string(n)) == "0" || (cloneErr == nil && strings.TrimSpace(string(clone)) == "0") {
		r.add(Info, "user namespaces are not allowed: `unshare -Urm` cannot stand in for fusermount3", "sysctl user.max_user_namespaces=10000")
	} else {
		r.add(OK, "user namespaces are allowed", "")
	}
	return r.list
}

func loop() []Finding {
	r := report{area: "loop"}
	fd, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		_ = unix.Close(fd)
		r.add(OK, "loop devices can be made", "")
	case unix.ENOENT, unix.ENXIO, unix.ENODEV:
		r.add(Warn, "no /dev/loop-control: volumes work as files, not as /dev/loopN", "modprobe loop; in a container: --privileged or --device /dev/loop-control")
	default:
		r.add(Warn, "loop devices are not available to you ("+err.Error()+"): volumes work as files", "run as root; without: mke2fs and fuse2fs work on the file")
	}
	return r.list
}

func privileges() []Finding {
	r := report{area: "privileges"}
	if os.Geteuid() == 0 {
		r.add(OK, "running as root", "")
	} else {
		r.add(Info, fmt.Sprintf("running as user %d: mounts are yours alone, no loop devices", os.Geteuid()), "")
	}
	if hasCapability(unix.CAP_SYS_ADMIN) {
		r.add(OK, "CAP_SYS_ADMIN: may mount and attach", "")
	} else if os.Geteuid() == 0 {
		r.add(Warn, "no CAP_SYS_ADMIN: root may not mount here", "in a container: --cap-add SYS_ADMIN --device /dev/fuse")
	}
	if hasCapability(unix.CAP_SYS_RESOURCE) {
		r.add(OK, "CAP_SYS_RESOURCE: the daemon is kept safe under memory pressure", "")
	} else {
		r.add(Info, "no CAP_SYS_RESOURCE: under memory pressure writes may stall, and the daemon may be killed as others are", "in a container: --cap-add SYS_RESOURCE")
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && lim.Max < 1024 {
		r.add(Warn, fmt.Sprintf("only %d open files are allowed", lim.Max), "ulimit -Hn 4096")
	}
	return r.list
}

// lowMemory is what a daemon with a few volumes and the caches of the file
// systems above it want free.
const lowMemory = 256 << 20

func memory() []Finding {
	r := report{area: "memory"}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			level, fix := OK, ""
			if kb<<10 < lowMemory {
				level, fix = Warn, "free some: a disk that waits for memory stalls"
			}
			r.add(level, stack.FormatSize(kb<<10)+" available", fix)
		}
	}
	return r.list
}

// wanted are the programs that are good to have, and what for.
var wanted = []struct{ name, use, fix string }{
	{"mkfs.ext4", "kvbfs up --fs ext4", "apt install e2fsprogs"},
	{"mkfs.xfs", "kvbfs up --fs xfs", "apt install xfsprogs"},
	{"mkfs.btrfs", "kvbfs up --fs btrfs", "apt install btrfs-progs"},
	{"fuse2fs", "ext4 without root", "apt install fuse2fs"},
	{"memcached", "a store on this machine", "apt install memcached"},
}

func tools() []Finding {
	r := report{area: "tools"}
	for _, t := range wanted {
		path, err := lookTool(t.name)
		if err != nil {
			r.add(Info, "no "+t.name+" ("+t.use+")", t.fix)
			continue
		}
		r.add(OK, path, "")
	}
	return r.list
}

// lookTool looks also where an ordinary user's PATH does not.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err != nil {
			path, err = exec.LookPath(dir + name)
		}
	}
	return path, err
}

// leftovers finds mounts whose daemon is gone.
func leftovers() []Finding {
	r := report{area: "fuse"}
	served := map[string]bool{}
	mounts, _ := daemon.Mounts()
	for _, m := range mounts {
		served[m.Dir] = true
	}
	for _, dir := range daemon.KVBFSMounts() {
		if m, ok := daemon.MountAt(dir); ok && !served[dir] && m.Dead() {
			r.add(Warn, "the mount on "+dir+" has no daemon any more", "kvbfs umount "+dir)
		}
	}
	return r.list
}
