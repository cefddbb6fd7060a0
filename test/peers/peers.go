package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// peer is something to be set beside kvbfs. start returns the path of a file of
// the rig's size; its error is the reason why it is left out.
type peer struct {
	name  string
	start func(ctx context.Context, r *rig) (string, error)
}

var peers = []peer{
	{"nbdfuse", nbdfuse},
	{"qemu-sd", qemu},
	{"loopfile", loopFile},
	{"naive", naive},
	{"gofuse-null", gofuseNull},
	{"s3backer", s3backer},
	{"ceph", ceph},
}

// need says which tool is missing.
func need(tools ...string) error {
	for _, t := range tools {
		if _, err := exec.LookPath(t); err != nil {
			return fmt.Errorf("%s is not installed (test/deps.sh bench)", t)
		}
	}
	return nil
}

// nbdfuse over nbdkit's memory plugin, by a unix socket.
func nbdfuse(ctx context.Context, r *rig) (string, error) {
	if err := need("nbdfuse", "nbdkit"); err != nil {
		return "", err
	}
	dir, err := r.mkdir("nbd")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "nbd")
	return file, r.daemon(ctx, dir, sized(file, r.bytes), "nbdfuse", dir, "[", "nbdkit", "--exit-with-parent", "memory", strconv.FormatInt(r.bytes, 10), "]")
}

// sparse makes a file of the rig's size in memory.
func (r *rig) sparse(name string) (string, error) {
	f, err := os.Create(r.path(name))
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Truncate(r.bytes), f.Close())
}

// qemu is qemu-storage-daemon's FUSE export of a raw file on tmpfs.
func qemu(ctx context.Context, r *rig) (string, error) {
	if err := need("qemu-storage-daemon"); err != nil {
		return "", err
	}
	raw, err := r.sparse("qemu.raw")
	if err != nil {
		return "", err
	}
	// It is mounted over a file. That must not have the size already, by which we
	// see that it serves.
	point := r.path("qemu")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		return "", err
	}
	return point, r.daemon(ctx, point, sized(point, r.bytes), "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=file,filename="+raw, "--blockdev", "driver=raw,node-name=disk,file=file",
		"--export", "type=fuse,id=export,node-name=disk,mountpoint="+point+",writable=on")
}

// loopFile is a plain file on tmpfs: what loop devices can do at best here.
func loopFile(_ context.Context, r *rig) (string, error) { return r.sparse("loopfile") }

// naive is test/naive over a memcached of its own.
func naive(ctx context.Context, r *rig) (string, error) {
	if err := need("memcached"); err != nil {
		return "", err
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	addr := net.JoinHostPort("127.0.0.1", port)
	answers := func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	mb := r.bytes>>20 + r.bytes>>24 + 64
	if err := r.daemon(ctx, "", answers, "memcached", "-u", "root", "-l", "127.0.0.1", "-p", port, "-U", "0", "-m", fmt.Sprint(mb),
		"-M", "-t", "4", "-R", "128", "-c", "4096", "-o", "slab_sizes=96-192-4176-4240-8352,slab_automove=0"); err != nil {
		return "", err
	}
	return r.naive(ctx, "naive", "--memcached", addr)
}

// gofuseNull is test/naive without a store: what go-fuse can do.
func gofuseNull(ctx context.Context, r *rig) (string, error) {
	return r.naive(ctx, "gofuse-null", "--null")
}

// naive builds and starts test/naive.
func (r *rig) naive(ctx context.Context, name string, args ...string) (string, error) {
	bin := r.path("naive.bin")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin, "github.com/kvbfs/kvbfs/test/naive")
	// Killed, the go tool would leave its directory behind; interrupted, it tidies
	// up. What it leaves all the same goes with the run's directory.
	build.Cancel = func() error { return build.Process.Signal(os.Interrupt) }
	build.WaitDelay = 10 * time.Second
	build.Env = append(os.Environ(), "GOTMPDIR="+r.dir, "CGO_ENABLED=0") // as make build, whose cache it finds
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building test/naive (run it inside the tree): %w: %s", err, out)
	}
	dir, err := r.mkdir(name)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "disk")
	return file, r.daemon(ctx, dir, sized(file, r.bytes), append(append([]string{bin, "--size", fmt.Sprint(r.bytes)}, args...), dir)...)
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// s3backer in its test mode, where a directory stands for the bucket and each
// block is a file; its caches are off, or it would be memory. Version 1.5.4 delays
// each of them on purpose there, so it is asked how long filling it would take.
func s3backer(ctx context.Context, r *rig) (string, error) {
	if err := need("s3backer"); err != nil {
		return "", err
	}
	bucket, err := r.mkdir("s3")
	if err != nil {
		return "", err
	}
	dir, err := r.mkdir("s3backer")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "file")
	if err := r.daemon(ctx, dir, sized(file, r.bytes), "s3backer", "-f", "--test", "--blockSize=4096", "--size="+fmt.Sprint(r.bytes),
		"--blockCacheSize=0", "--md5CacheSize=0", "--md5CacheTime=0", "--minWriteDelay=0", "--listBlocks", bucket, dir); err != nil {
		return "", err
	}
	each, err := timeOfWrite(file)
	if fill := each * time.Duration(r.bytes/4096) / fillDepth; err == nil && fill > maxFill {
		err = fmt.Errorf("its test mode takes %v for a block: filling it would take %v", each.Round(time.Millisecond), fill.Round(time.Minute))
	}
	if err != nil {
		r.stops[len(r.stops)-1]()
		r.stops = r.stops[:len(r.stops)-1]
	}
	return file, err
}

const (
	maxFill   = 15 * time.Second // slower than that, its loop device fails requests while it is filled
	fillDepth = 16               // blocks that a filling writer has in flight there, generously
)

// timeOfWrite is the mean time of a few direct writes of a block.
func timeOfWrite(path string) (time.Duration, error) {
	page, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return 0, err
	}
	defer func() { _ = syscall.Munmap(page) }()
	page[0] = 1 // not zeros, which may cost nothing
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const n = 8
	begin := time.Now()
	for i := range int64(n) {
		if _, err := f.WriteAt(page, i*4096); err != nil {
			return 0, err
		}
	}
	return time.Since(begin) / n, nil
}

// ceph takes an image of a cluster that is there already, through rbd-fuse.
func ceph(ctx context.Context, r *rig) (string, error) {
	if os.Getenv("CEPH") != "1" {
		return "", errors.New("a cluster is needed: CEPH=1 uses the one of /etc/ceph/ceph.conf, pool rbd")
	}
	if err := need("rbd", "rbd-fuse"); err != nil {
		return "", err
	}
	image := "kvbfs-peers-" + strconv.Itoa(os.Getpid())
	if out, err := exec.CommandContext(ctx, "rbd", "create", image, "--size", fmt.Sprintf("%dM", r.bytes>>20)).CombinedOutput(); err != nil {
		return "", fmt.Errorf("rbd create: %w: %s", err, out)
	}
	r.stops = append(r.stops, func() { _ = exec.Command("rbd", "rm", image).Run() })
	dir, err := r.mkdir("ceph")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, image)
	return file, r.daemon(ctx, dir, sized(file, r.bytes), "rbd-fuse", "-f", "-p", "rbd", dir)
}
