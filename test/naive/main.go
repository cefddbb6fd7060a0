// Command naive is a disk on memcached as one would write it in an afternoon: the
// node API of go-fuse with its defaults, and gomemcache, one GET or SET per block.
// The benchmark sets kvbfs beside it. It is no disk to keep data on: a miss reads as
// zeros, and two writers of one block undo each other.
//
// With --null it serves a disk that keeps nothing by go-fuse's raw API, tuned
// (tuned.go): the fastest that go-fuse itself can be.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const blockSize = 4096

// disk is the one file.
type disk struct {
	fs.Inode
	client *memcache.Client
	size   uint64
}

func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = 0o600, d.size, blockSize
	return 0
}

func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) { return nil, 0, 0 }

func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// block fetches one block.
func (d *disk) block(n int64) ([]byte, error) {
	item, err := d.client.Get(fmt.Sprintf("naive%011d", n))
	if errors.Is(err, memcache.ErrCacheMiss) {
		return make([]byte, blockSize), nil
	}
	if err != nil {
		return nil, err
	}
	return item.Value, nil
}

func (d *disk) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	for done := 0; done < len(dest); {
		at := off + int64(done)
		data, err := d.block(at / blockSize)
		if err != nil {
			return nil, syscall.EIO
		}
		done += copy(dest[done:], data[at%blockSize:])
	}
	return fuse.ReadResultData(dest), 0
}

func (d *disk) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	for done := 0; done < len(data); {
		at := off + int64(done)
		value := data[done:min(len(data), done+blockSize)]
		if at%blockSize != 0 || len(value) < blockSize { // a piece of a block
			old, err := d.block(at / blockSize)
			if err != nil {
				return 0, syscall.EIO
			}
			done += copy(old[at%blockSize:], value)
			value = old
		} else {
			done += blockSize
		}
		if err := d.client.Set(&memcache.Item{Key: fmt.Sprintf("naive%011d", at/blockSize), Value: value}); err != nil {
			return 0, syscall.EIO
		}
	}
	return uint32(len(data)), 0
}

// root is the directory with the disk in it.
type root struct {
	fs.Inode
	disk *disk
}

func (r *root) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.disk, fs.StableAttr{Mode: syscall.S_IFREG}), false)
}

func main() {
	server := flag.String("memcached", "127.0.0.1:11211", "server")
	size := flag.Uint64("size", 1<<30, "bytes of the disk")
	null := flag.Bool("null", false, "keep nothing")
	flag.Parse()
	if err := run(flag.Arg(0), *server, *size, *null); err != nil {
		fmt.Fprintln(os.Stderr, "naive:", err)
		os.Exit(1)
	}
}

// run serves until it is unmounted or told to end.
func run(dir, server string, size uint64, null bool) error {
	var srv *fuse.Server
	var err error
	if null {
		srv, err = serveNull(dir, size)
	} else {
		client := memcache.New(server)
		client.MaxIdleConns, client.Timeout = 64, 10*time.Second
		srv, err = fs.Mount(dir, &root{disk: &disk{client: client, size: size}}, &fs.Options{MountOptions: fuse.MountOptions{FsName: "naive", DirectMount: true}})
	}
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-end
		_ = srv.Unmount()
	}()
	srv.Wait()
	return nil
}
