package fusefs

import (
	"fmt"
	"syscall"
)

// judgeName is judge for requests about names and opens.
func (m *wireModel) judgeName(q *wireRequest, args, payload []byte, a wireAnswer) error {
	switch q.opcode() {
	case opLookup:
		return m.lookup(q.node(), nameIn(payload), a)
	case opForget:
		if n := m.byID[q.node()]; n != nil {
			n.lookups -= min(u64(args, 0), n.lookups)
			m.drop(n)
		}
	case opGetattr:
		return m.getattr(q.node(), a)
	case opUnlink:
		n := m.byName[nameIn(payload)]
		if n == nil || !n.pending {
			return same(syscall.EPERM, a)
		}
		m.unlink(n)
	case opOpen:
		return m.open(q.node(), args, a)
	case opRelease:
		m.release(u64(args, 0))
	case opCreate:
		return m.create(q.node(), args, nameIn(payload), a)
	case opOpendir:
		if q.node() != rootID {
			return same(syscall.ENOTDIR, a)
		}
		if len(a.data) != 16 || m.dirs[u64(a.data, 0)] {
			return fmt.Errorf("opendir answered %v", a.data)
		}
		m.dirs[u64(a.data, 0)] = true
	case opReleasedir:
		delete(m.dirs, u64(args, 0))
	case opReaddir, opReaddirplus:
		if uint64(u32(args, 16)) > wirePayload && a.errno == int(syscall.EIO) {
			return nil // no room for the answer
		}
		if !m.dirs[u64(args, 0)] {
			return same(syscall.EBADF, a)
		}
		if err := m.listed(a.data, q.opcode() == opReaddirplus); err != nil {
			return err
		}
	}
	return same(nil, a)
}

func (m *wireModel) lookup(parent uint64, name string, a wireAnswer) error {
	bad := badName(name, syscall.ENOENT)
	switch {
	case parent != rootID:
		return same(syscall.ENOTDIR, a)
	case name == statsName:
		return same(nil, a)
	case bad != nil:
		return same(bad, a)
	case m.byName[name] == nil && m.disks[name] == nil:
		return same(syscall.ENOENT, a)
	case a.errno != 0 || len(a.data) != 128:
		return fmt.Errorf("lookup of %q answered %d, %d bytes", name, a.errno, len(a.data))
	}
	n, err := m.found(name, u64(a.data, 0))
	if err == nil && u64(a.data, 48) != m.sizeOf(n) {
		err = fmt.Errorf("lookup shows %d bytes of %d", u64(a.data, 48), m.sizeOf(n))
	}
	return err
}

func (m *wireModel) getattr(node uint64, a wireAnswer) error {
	n := m.byID[node]
	switch {
	case node == rootID || node == statsID:
		return same(nil, a)
	case n == nil:
		return same(syscall.ENOENT, a)
	case a.errno != 0 || len(a.data) != 104:
		return fmt.Errorf("getattr answered %d, %d bytes", a.errno, len(a.data))
	case u64(a.data, 24) != m.sizeOf(n):
		return fmt.Errorf("getattr shows %d bytes of %d", u64(a.data, 24), m.sizeOf(n))
	}
	return nil
}

func (m *wireModel) open(node uint64, args []byte, a wireAnswer) error {
	write := u32(args, 0)&syscall.O_ACCMODE != syscall.O_RDONLY
	n := m.byID[node]
	switch {
	case node == statsID && write:
		return same(syscall.EACCES, a)
	case node != statsID && (n == nil || n.pending && n.gone):
		return same(syscall.ENOENT, a)
	}
	return m.opened(n, write, a, 0)
}

// opened takes the handle from an answer.
func (m *wireModel) opened(n *wireNode, write bool, a wireAnswer, at int) error {
	if a.errno != 0 || len(a.data) != at+16 {
		return fmt.Errorf("open answered %d, %d bytes", a.errno, len(a.data))
	}
	fh := u64(a.data, at)
	if fh == 0 || m.handles[fh] != nil {
		return fmt.Errorf("open gave handle %d, which is open", fh)
	}
	m.handles[fh] = &wireHandle{n, write}
	if n != nil {
		n.opens++
	}
	return nil
}

func (m *wireModel) release(fh uint64) {
	h := m.handles[fh]
	delete(m.handles, fh)
	if h == nil || h.n == nil {
		return
	}
	h.n.opens--
	if h.n.pending && h.n.opens == 0 {
		m.unlink(h.n)
	} else if h.n.gone {
		m.drop(h.n)
	}
}

func (m *wireModel) create(parent uint64, args []byte, name string, a wireAnswer) error {
	bad := badName(name, syscall.EINVAL)
	flags := u32(args, 0)
	switch {
	case parent != rootID:
		return same(syscall.ENOTDIR, a)
	case name == statsName:
		return same(syscall.EEXIST, a)
	case bad != nil:
		return same(bad, a)
	case m.disks[name] != nil && flags&syscall.O_EXCL != 0:
		return same(syscall.EEXIST, a)
	case a.errno != 0 || len(a.data) != 144:
		return fmt.Errorf("create answered %d, %d bytes", a.errno, len(a.data))
	}
	n, err := m.found(name, u64(a.data, 0))
	if err != nil {
		return err
	}
	n.pending = m.disks[name] == nil
	return m.opened(n, flags&syscall.O_ACCMODE != syscall.O_RDONLY, a, 128)
}

// listed reads what READDIR answered; READDIRPLUS gives references, as LOOKUP does.
func (m *wireModel) listed(b []byte, plus bool) error {
	for len(b) > 0 {
		at := 0
		if plus {
			at = 128
		}
		if len(b) < at+24 {
			return fmt.Errorf("%d bytes are left of a list", len(b))
		}
		n := int(u32(b, at+16))
		size := (at + 24 + n + 7) &^ 7
		if size > len(b) {
			return fmt.Errorf("an entry of %d bytes in %d", size, len(b))
		}
		name := string(b[at+24 : at+24+n])
		if name != "." && name != ".." && name != statsName {
			if m.disks[name] == nil {
				return fmt.Errorf("%q is listed", name)
			}
			if plus {
				if _, err := m.found(name, u64(b, 0)); err != nil {
					return err
				}
			}
		}
		b = b[size:]
	}
	return nil
}
