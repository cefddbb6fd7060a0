package chain

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// filesystem is one that Up can make.
type filesystem struct {
	name string
	tool string
	pack string // Debian package of the tool
	// fixed options; fresh ones come on top for a volume that holds nothing: there
	// is no need to discard what was never written.
	options, fresh []string
	// mount is the data of mount(2).
	mount string
}

var filesystems = []filesystem{
	{
		name: "ext4", tool: "mke2fs", pack: "e2fsprogs",
		// Lazy: zeroing inode tables is left to the kernel, in the background, and
		// blocks of zeros are never stored anyway.
		options: []string{"-t", "ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=1,lazy_journal_init=1"},
		fresh:   []string{"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"},
	},
	{
		name: "xfs", tool: "mkfs.xfs", pack: "xfsprogs",
		options: []string{"-q", "-f", "-s", "size=4096"},
		fresh:   []string{"-K"},
	},
	{
		name: "btrfs", tool: "mkfs.btrfs", pack: "btrfs-progs",
		options: []string{"-q", "-f", "-s", "4096"},
		fresh:   []string{"-K"},
		// Since Linux 6.2 it discards by itself; fstrim is left to the user, as
		// with the others.
		mount: "nodiscard",
	},
}

func fsNames() []string {
	var names []string
	for _, f := range filesystems {
		names = append(names, f.name)
	}
	return names
}

func fsNamed(name string) (filesystem, bool) {
	i := slices.IndexFunc(filesystems, func(f filesystem) bool { return f.name == name })
	if i < 0 {
		return filesystem{}, false
	}
	return filesystems[i], true
}

// mkfs is the command line that makes the file system; options of ours come
// before the user's.
func (f filesystem) mkfs(on string, fresh bool, ours, user []string) []string {
	args := slices.Clone(f.options)
	if fresh {
		args = append(args, f.fresh...)
	}
	return slices.Concat(args, ours, user, []string{on})
}

// probeSize is how much of a volume's beginning is looked at: every signature
// below, and enough to tell an empty volume from one with raw data.
const probeSize = 1 << 20

// Contents beside the names of file systems.
const (
	empty   = ""
	unknown = "data of an unknown kind"
	half    = "a file system that was never finished"
)

// xfsInProgress is the place of sb_inprogress in the superblock.
const xfsInProgress = 126

// signature is a magic number at a fixed place.
type signature struct {
	name  string
	off   int
	magic string
}

var signatures = []signature{
	{"xfs", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{half, 0x10040, "!BHRfS_M"},
	{"a LUKS container", 0, "LUKS\xba\xbe"},
	{"swap space", 4086, "SWAPSPACE2"},
	{"an LVM physical volume", 512, "LABELONE"},
	{"squashfs", 0, "hsqs"},
	{"a partition table", 512, "EFI PART"},
	{"a partition table", 4096, "EFI PART"},
	{"an ISO 9660 image", 32769, "CD001"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"bcachefs", 4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
}

// identify says what the first probeSize bytes of a volume are: empty, the name
// of a file system, or other words for people.
func identify(head []byte) string {
	// mkfs.xfs and mkfs.btrfs mark what they have not finished; mke2fs writes its
	// magic number last.
	if len(head) > xfsInProgress && string(head[:4]) == "XFSB" && head[xfsInProgress] != 0 {
		return half
	}
	for _, s := range signatures {
		if len(head) >= s.off+len(s.magic) && bytes.Equal(head[s.off:s.off+len(s.magic)], []byte(s.magic)) {
			return s.name
		}
	}
	if name := identifyExt(head); name != "" {
		return name
	}
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa {
		return "a partition table"
	}
	if len(bytes.TrimLeft(head, "\x00")) == 0 {
		return empty
	}
	return unknown
}

// identifyExt tells the generations of the ext family by their features.
func identifyExt(head []byte) string {
	const (
		superblock = 1024
		hasJournal = 0x4
		// extents, 64bit, mmp, flex_bg
		ext4Incompat = 0x40 | 0x80 | 0x100 | 0x200
		// huge_file, gdt_csum, dir_nlink, extra_isize, metadata_csum
		ext4ROCompat = 0x8 | 0x10 | 0x20 | 0x40 | 0x400
	)
	if len(head) < superblock+104 || binary.LittleEndian.Uint16(head[superblock+56:]) != 0xef53 {
		return ""
	}
	compat := binary.LittleEndian.Uint32(head[superblock+92:])
	incompat := binary.LittleEndian.Uint32(head[superblock+96:])
	roCompat := binary.LittleEndian.Uint32(head[superblock+100:])
	switch {
	case incompat&ext4Incompat != 0 || roCompat&ext4ROCompat != 0:
		return "ext4"
	case compat&hasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// choose decides what to do with a volume that holds content when want is asked
// for ("" for whatever is there): the file system to mount, and whether to make it.
func choose(name, content, want string) (fs string, make bool, err error) {
	switch {
	case content == empty && want == "":
		return DefaultFS, true, nil
	case content == empty:
		return want, true, nil
	case content == want:
		return want, false, nil
	}
	if _, known := fsNamed(content); known && want == "" {
		return content, false, nil
	} else if known {
		return "", false, fmt.Errorf("volume %s holds %s, not %s: say --fs %s, or use another volume", name, content, want, content)
	}
	return "", false, fmt.Errorf("volume %s holds %s: nothing was changed; attach it with `kvbfs attach %s` to look at it, or use another volume", name, content, name)
}
