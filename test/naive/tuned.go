package main

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// null is a directory with one file that keeps nothing, without anything between
// go-fuse and the answer.
type null struct {
	fuse.RawFileSystem
	size uint64
}

const diskID = 2

// serveNull mounts it with the settings that make go-fuse fast.
func serveNull(dir string, size uint64) (*fuse.Server, error) {
	srv, err := fuse.NewServer(&null{fuse.NewDefaultRawFileSystem(), size}, dir, &fuse.MountOptions{
		FsName: "gofuse-null", DirectMount: true, DisableXAttrs: true, DisableSplice: true,
		MaxBackground: 256, MaxWrite: 1 << 20, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
	})
	if err != nil {
		return nil, err
	}
	go srv.Serve()
	return srv, srv.WaitMount()
}

func (n *null) attr(id uint64, a *fuse.Attr) fuse.Status {
	*a = fuse.Attr{Ino: id, Mode: syscall.S_IFDIR | 0o700, Nlink: 1, Blksize: blockSize}
	if id == diskID {
		a.Mode, a.Size = syscall.S_IFREG|0o600, n.size
	}
	return fuse.OK
}

func (n *null) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "disk" {
		return fuse.ENOENT
	}
	out.NodeId, out.EntryValid, out.AttrValid = diskID, 3600, 3600
	return n.attr(diskID, &out.Attr)
}

func (n *null) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = 3600
	return n.attr(in.NodeId, &out.Attr)
}

func (n *null) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

func (n *null) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	return fuse.ReadResultData(buf[:in.Size]), fuse.OK
}

func (n *null) Write(_ <-chan struct{}, _ *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return uint32(len(data)), fuse.OK
}

func (n *null) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (n *null) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	return fuse.OK
}
