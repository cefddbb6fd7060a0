package chain

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// mkfs.btrfs looks at the devices of all mounts of the machine, and gives up at a loop
// device whose image is on a mount that nobody serves any more, whoever's that is.
const (
	btrfsLooks = "cannot check mount status"
	mkfsTries  = 20
	mkfsPause  = 250 * time.Millisecond
)

// mkfs makes a file system. Where it meets a dead mount of somebody else it is tried
// again for a while, as that one may be put right just now.
func (c *Chain) mkfs(ctx context.Context, fs filesystem, args []string) error {
	for try := 1; ; try++ {
		err := c.sys.Tool(ctx, fs.tool, args...)
		switch {
		case err == nil || fs.name != "btrfs" || !strings.Contains(err.Error(), btrfsLooks):
			return err
		case try == mkfsTries:
			return fmt.Errorf("%w: it looks at all mounts of this machine, and one of them is dead: `kvbfs umount DIR` takes it off (`findmnt -t fuse.kvbfs` lists them), or use --fs ext4", err)
		}
		if err := pause(ctx, mkfsPause); err != nil {
			return err
		}
	}
}
