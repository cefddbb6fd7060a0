package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// connection is our end of /dev/fuse: the descriptor that is served, and a
// duplicate that tells whether the kernel still listens, also when those who serve
// are held up by a request.
type connection struct {
	dir    string // mount point or /dev/fd/N
	fd     int    // closed when nobody serves any more
	number int    // below /sys/fs/fuse/connections; 0: unknown

	mu  sync.Mutex // guards dup
	dup int        // -1: closed
}

const fuseHelp = "load the driver with 'modprobe fuse'; in a container add '--device /dev/fuse --cap-add SYS_ADMIN'"

// connect mounts dir, in the first way that works: mount(2) where we may, else
// fusermount3. A connection that was passed as /dev/fd/N is taken as it is.
func connect(dir string, opt *Options) (*connection, error) {
	fd := passedFD(dir)
	if fd >= 0 {
		if err := checkPassed(fd); err != nil {
			return nil, err
		}
	} else {
		var err error
		fd, err = mountDirect(dir, opt)
		if errors.Is(err, errNotPermitted) {
			fd, err = mountHelper(dir, opt, err)
		}
		if err != nil {
			return nil, err
		}
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("%w: descriptor %d: %w", ErrNoFUSE, fd, err)
	}
	unix.CloseOnExec(fd)
	return &connection{dir: dir, fd: fd, dup: dup}, nil
}

// fuseDevice is the number of /dev/fuse on every Linux: 10:229.
var fuseDevice = unix.Mkdev(10, 229)

// checkPassed refuses a descriptor that is no connection: reading would only say
// that it could not read from it.
func checkPassed(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%w: descriptor %d was not passed: %w", ErrMountPoint, fd, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != fuseDevice {
		return fmt.Errorf("%w: descriptor %d is not an open /dev/fuse", ErrMountPoint, fd)
	}
	return nil
}

// errNotPermitted: mount(2) is not for us, but fusermount3 may do it. It opens
// /dev/fuse as the user, so who may not open it gets nowhere with it either.
var errNotPermitted = errors.New("not permitted")

// mountDirect mounts with mount(2): as root, or in a user namespace.
func mountDirect(dir string, opt *Options) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("%w: %w; %s", ErrNoFUSE, err, fuseHelp)
	case err != nil:
		return -1, fmt.Errorf("%w: it may not be opened: %w; as root: 'chmod 666 /dev/fuse'; in a container add '--device /dev/fuse'", ErrNoFUSE, err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if opt.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,%s", fd, os.Geteuid(), os.Getegid(), strings.Join(mountData(opt), ","))
	if err := unix.Mount(sourceName(opt), dir, fsType, flags, data); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return -1, fmt.Errorf("mounting on %s: %w (%w): in a container add '--cap-add SYS_ADMIN' (and an AppArmor or seccomp profile that allows mount), or run under 'unshare -Urm'", dir, errNotPermitted, err)
		}
		if errors.Is(err, unix.ENODEV) {
			return -1, fmt.Errorf("%w: the kernel has no FUSE: %w; %s", ErrNoFUSE, err, fuseHelp)
		}
		return -1, fmt.Errorf("mounting on %s: %w", dir, err)
	}
	return fd, nil
}

// mountData are the options that mount(2) and fusermount3 have in common.
// default_permissions: the kernel checks modes, which are the owner's only.
func mountData(opt *Options) []string {
	o := []string{"default_permissions", fmt.Sprintf("max_read=%d", maxRequest)}
	if opt.AllowOther {
		o = append(o, "allow_other")
	}
	return o
}

func sourceName(opt *Options) string {
	if opt.Name == "" {
		return fsSubtype
	}
	return opt.Name
}

// mountHelper mounts through the setuid program fusermount3, which sends the
// descriptor over a socket. before is why mount(2) failed.
func mountHelper(dir string, opt *Options, before error) (fd int, err error) {
	bin, err := helper()
	if err != nil {
		return -1, fmt.Errorf("%w; or install fusermount3 (package fuse3)", before)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	local, remote := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "fusermount's")
	defer local.Close()
	defer remote.Close()

	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	o := append(mountData(opt), "nosuid", "nodev", "fsname="+escape.Replace(sourceName(opt)), "subtype="+fsSubtype)
	if opt.ReadOnly {
		o = append(o, "ro")
	}
	cmd := exec.Command(bin, "-o", strings.Join(o, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{remote}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return -1, fmt.Errorf("mounting on %s: %s", dir, strings.TrimPrefix(firstLine(stderr.String(), err), bin+": "))
	}
	return receive(int(local.Fd()))
}

// receive takes the descriptor that fusermount3 sent.
func receive(sock int) (fd int, err error) {
	var buf [8]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, buf[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount sent no descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("fusermount sent no descriptor")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount sent no descriptor")
	}
	return fds[0], nil
}

// helper finds fusermount.
func helper() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "/usr/bin/fusermount3", "fusermount"} {
		if bin, err := exec.LookPath(name); err == nil {
			return bin, nil
		}
	}
	return "", exec.ErrNotFound
}

func firstLine(s string, otherwise error) string {
	if line, _, _ := strings.Cut(strings.TrimSpace(s), "\n"); line != "" {
		return line
	}
	return otherwise.Error()
}

// identify finds the connection's number without touching the mount.
func (c *connection) identify() {
	// Linux 6.17 says it with the descriptor.
	if info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", c.dup)); err == nil {
		for line := range strings.Lines(string(info)) {
			if num, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
				c.number, _ = strconv.Atoi(strings.TrimSpace(num))
			}
		}
	}
	if c.number != 0 {
		return
	}
	for _, m := range mounts() { // the last one is on top
		if m.point == c.dir && strings.HasPrefix(m.fstype, "fuse") {
			c.number = m.minor
		}
	}
}

// mountPoint is where the connection is mounted now, "" if nowhere or unknown.
func (c *connection) mountPoint() string {
	point := ""
	for _, m := range mounts() {
		// By number where we can: another daemon may be mounted in our place by now.
		if c.number != 0 && m.minor == c.number || c.number == 0 && m.point == c.dir {
			if m.fstype == fsType {
				point = m.point
			}
		}
	}
	return point
}

// sysfs is the connection's directory of switches, "" if it is not known.
func (c *connection) sysfs() string {
	if c.number == 0 {
		return ""
	}
	return fmt.Sprintf("/sys/fs/fuse/connections/%d", c.number)
}

// hasSwitches says whether that directory is there: fusectl must be mounted.
func (c *connection) hasSwitches() bool {
	_, err := os.Stat(c.sysfs() + "/abort")
	return c.number != 0 && err == nil
}

// abort makes the kernel fail everything that waits for us.
func (c *connection) abort() error {
	dir := c.sysfs()
	if dir == "" {
		return errors.New("the number of the FUSE connection is not known")
	}
	return os.WriteFile(dir+"/abort", []byte("1"), 0)
}

// dead says whether the kernel has closed the connection.
func (c *connection) dead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dup < 0 {
		return true
	}
	// Asked for nothing, poll tells of POLLERR only. It does not wait: a poller
	// that waits would be woken at each request.
	p := []unix.PollFd{{Fd: int32(c.dup)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

// with calls f with a descriptor of the connection that stays open meanwhile; not
// at all if the connection was closed. f may wait for the kernel.
func (c *connection) with(f func(fd int)) {
	c.mu.Lock()
	fd := -1
	if c.dup >= 0 {
		fd, _ = unix.FcntlInt(uintptr(c.dup), unix.F_DUPFD_CLOEXEC, 3)
	}
	c.mu.Unlock()
	if fd >= 0 {
		f(fd)
		unix.Close(fd)
	}
}

// close lets go of our descriptor.
func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dup >= 0 {
		unix.Close(c.dup)
		c.dup = -1
	}
}

// abandon undoes connect.
func (c *connection) abandon() {
	c.close()
	if passedFD(c.dir) < 0 {
		_ = unmount(c.dir, true)
	}
}
