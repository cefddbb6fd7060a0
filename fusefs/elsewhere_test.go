package fusefs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// What others do to volumes while the kernel's requests are under way.

func (r *wireRig) creat(name string) (node, fh uint64) {
	r.t.Helper()
	in := fuse.CreateIn{Flags: syscall.O_RDWR | syscall.O_CREAT}
	in.NodeId = rootID
	var out fuse.CreateOut
	if st := r.s.tree.Create(nil, &in, name, &out); !st.Ok() {
		r.t.Fatalf("create %s: %v", name, st)
	}
	return out.NodeId, out.Fh
}

func (r *wireRig) truncate(node, size uint64) (uint64, fuse.Status) {
	var in fuse.SetAttrIn
	in.NodeId, in.Valid, in.Size = node, fuse.FATTR_SIZE, size
	var out fuse.AttrOut
	st := r.s.tree.SetAttr(nil, &in, &out)
	return out.Size, st
}

func (r *wireRig) lookup(name string) (node uint64, st fuse.Status) {
	var out fuse.EntryOut
	st = r.s.tree.Lookup(nil, &fuse.InHeader{NodeId: rootID}, name, &out)
	return out.NodeId, st
}

// listed is an entry of READDIRPLUS.
type listed struct {
	node, size, next uint64
	name             string
}

func (r *wireRig) readdirplus(fh, offset uint64, size int) (all []listed) {
	r.t.Helper()
	buf := make([]byte, size)
	in := fuse.ReadIn{Fh: fh, Offset: offset}
	if st := r.s.tree.ReadDirPlus(nil, &in, fuse.NewDirEntryList(buf, offset)); !st.Ok() {
		r.t.Fatal(st)
	}
	for len(buf) > 128 { // struct fuse_entry_out, then struct fuse_dirent
		n := int(binary.NativeEndian.Uint32(buf[128+16:]))
		if n == 0 {
			break
		}
		all = append(all, listed{binary.NativeEndian.Uint64(buf), binary.NativeEndian.Uint64(buf[48:]), binary.NativeEndian.Uint64(buf[128+8:]), string(buf[128+24:][:n])})
		buf = buf[min(len(buf), 128+(24+n+7)&^7):]
	}
	return all
}

func (r *wireRig) opendir() (fh uint64) {
	in := fuse.OpenIn{}
	in.NodeId = rootID
	var out fuse.OpenOut
	if st := r.s.tree.OpenDir(nil, &in, &out); !st.Ok() {
		r.t.Fatal(st)
	}
	return out.Fh
}

// works wants an open image to be read, written and flushed.
func (r *wireRig) works(fh uint64) {
	r.t.Helper()
	t, want := r.s.tree, bytes.Repeat([]byte{7}, 4096)
	if n, st := t.Write(nil, &fuse.WriteIn{Fh: fh, Size: 4096}, want); n != 4096 || !st.Ok() {
		r.t.Errorf("write: %d, %v", n, st)
	}
	got := make([]byte, 4096)
	if res, st := t.Read(nil, &fuse.ReadIn{Fh: fh, Size: 4096}, got); !st.Ok() || res != nil && res.Size() != 4096 || !bytes.Equal(got, want) {
		r.t.Errorf("read: %v, %v", res, st)
	}
	if st := t.Fsync(nil, &fuse.FsyncIn{Fh: fh}); !st.Ok() {
		r.t.Errorf("fsync: %v", st)
	}
	t.Release(nil, &fuse.ReleaseIn{Fh: fh})
}

// TestPendingImageIsMadeElsewhere: who has an image open that has no size yet reads and
// writes the volume that somebody else makes of it, whoever notices first; and if that
// cannot be opened it is an error, not an empty file.
func TestPendingImageIsMadeElsewhere(t *testing.T) {
	for _, first := range []string{"data", "ftruncate", "list"} {
		r := newWireRig(t)
		node, fh := r.creat("v")
		if err := r.vols.Create(t.Context(), "v", 1<<20); err != nil {
			t.Fatal(err)
		}
		r.s.tree.cat.forget()
		if first == "list" {
			for _, e := range r.readdirplus(r.opendir(), 0, 8192) {
				if e.name == "v" && e.node != 0 {
					t.Error("the list speaks for an image that has no size yet")
				}
			}
			r.s.tree.Release(nil, &fuse.ReleaseIn{Fh: fh})
			continue
		}
		_, again := r.creat("v") // finds the volume
		if first == "ftruncate" {
			if size, st := r.truncate(node, 1<<20); size != 1<<20 || !st.Ok() {
				t.Errorf("ftruncate: %d, %v", size, st)
			}
		}
		r.works(fh)
		r.works(again)
	}
}

func TestPendingImageThatCannotBeOpened(t *testing.T) {
	r := newWireRig(t)
	node, fh := r.creat("v")
	tr := r.s.tree
	// As after a realise whose volume another machine was faster to open.
	tr.mu.Lock()
	n := tr.byID[node]
	n.pending, n.info.Size = false, 1<<20
	tr.mu.Unlock()
	if _, st := r.truncate(node, 1<<20); st.Ok() {
		t.Error("ftruncate of a volume that cannot be opened")
	}
	if _, st := tr.Write(nil, &fuse.WriteIn{Fh: fh, Size: 1}, []byte{1}); st != fuse.EIO {
		t.Errorf("write: %v", st)
	}
	if _, st := tr.Read(nil, &fuse.ReadIn{Fh: fh, Size: 1}, make([]byte, 1)); st != fuse.EIO {
		t.Errorf("read: %v", st)
	}
	if st := tr.Fsync(nil, &fuse.FsyncIn{Fh: fh}); st != fuse.EIO {
		t.Errorf("fsync: %v", st)
	}
	if err := r.vols.Create(t.Context(), "v", 1<<20); err != nil {
		t.Fatal(err)
	}
	r.works(fh)
}

// TestForgottenWhileRead: what a reading of the catalogue finds that was under way while
// something changed is not believed.
func TestForgottenWhileRead(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan []volume.Info)
	c := catalogue{read: func(context.Context) ([]volume.Info, error) { asked <- struct{}{}; return <-answer, nil }}
	old := make([]volume.Info, 1)
	old[0].Name, old[0].State = "v", pool.Ready
	done := make(chan struct{})
	go func() { _, _ = c.list(t.Context(), listAge); close(done) }()
	<-asked
	c.forget() // v was removed
	answer <- old
	<-done
	gone := make(chan bool)
	go func() {
		infos, err := c.list(t.Context(), listAge)
		gone <- len(infos) == 0 && err == nil
	}()
	select {
	case <-gone:
		t.Fatal("the list is not read anew")
	case <-asked:
	}
	answer <- nil
	if !<-gone {
		t.Error("there is what was removed")
	}
}

// TestTruncateAfterAChangeElsewhere: truncate(2) goes by the size that a volume has now.
func TestTruncateAfterAChangeElsewhere(t *testing.T) {
	r := newWireRig(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(r.vols.Create(ctx, "v", 1<<20))
	node, st := r.lookup("v")
	if !st.Ok() {
		t.Fatal(st)
	}
	must(r.vols.Resize(ctx, "v", 2<<20, false))
	if _, st := r.truncate(node, 1<<20); st != fuse.EPERM {
		t.Errorf("made smaller than it is by now: %v, want EPERM", st)
	}
	must(r.vols.Resize(ctx, "v", 1<<19, true))
	if size, st := r.truncate(node, 1<<20); size != 1<<20 || !st.Ok() {
		t.Errorf("made larger than it is by now: %d, %v", size, st)
	}
	if info, err := r.vols.Info(ctx, "v"); err != nil || info.Size != 1<<20 {
		t.Errorf("it has %d bytes, %v", info.Size, err)
	}
	must(r.vols.Remove(ctx, "v", nil))
	if _, st := r.truncate(node, 1<<20); st != fuse.ENOENT {
		t.Errorf("of a volume that was removed: %v", st)
	}
}

// TestSlowReaddirplus: what changed since a list was read does not become what it was.
func TestSlowReaddirplus(t *testing.T) {
	r := newWireRig(t)
	ctx := t.Context()
	const volumes = 40
	for i := range volumes {
		if err := r.vols.Create(ctx, fmt.Sprintf("v%02d", i), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	fh := r.opendir()
	seen := r.readdirplus(fh, 0, 1024)
	if len(seen) > 10 {
		t.Fatalf("%d entries at once", len(seen))
	}
	// One goes, one is made anew and known, one becomes larger and is known.
	change := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	change(r.vols.Remove(ctx, "v30", nil))
	change(r.vols.Remove(ctx, "v31", nil))
	change(r.vols.Create(ctx, "v31", 2<<20))
	change(r.vols.Resize(ctx, "v32", 2<<20, false))
	r.s.tree.cat.forget()
	anew, st := r.lookup("v31")
	if _, st2 := r.lookup("v32"); !st.Ok() || !st2.Ok() {
		t.Fatal(st, st2)
	}
	for next := seen[len(seen)-1].next; ; {
		part := r.readdirplus(fh, next, 1024)
		if len(part) == 0 {
			break
		}
		seen, next = append(seen, part...), part[len(part)-1].next
	}
	if len(seen) != volumes+4 { // ., .., .stats and the rig's
		t.Errorf("%d entries", len(seen))
	}
	for _, e := range seen {
		switch e.name {
		case "v30":
			if e.node != 0 {
				t.Error("what was removed has a node")
			}
		case "v31", "v32":
			if e.size != 2<<20 || e.name == "v31" && e.node != anew {
				t.Errorf("%s: node %d of %d bytes", e.name, e.node, e.size)
			}
		}
	}
	if again, st := r.lookup("v31"); again != anew || !st.Ok() {
		t.Errorf("v31 is node %d, was %d: %v", again, anew, st)
	}
}
