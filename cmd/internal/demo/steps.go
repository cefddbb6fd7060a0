package demo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// copyTree fills the tree volume; the clock includes the last byte's way to the
// store, since the file system is unmounted within.
func (d *demo) copyTree(ctx context.Context, c *column) (cell, error) {
	begin := time.Now()
	if err := d.way.fill(ctx, c); err != nil {
		return cell{}, err
	}
	return rate(d.tree.bytes, time.Since(begin)), nil
}

// checkTree ends the daemon and starts another one, so that nothing can come
// from a cache, and compares.
func (d *demo) checkTree(ctx context.Context, c *column) (cell, error) {
	if err := d.s.Umount(ctx, c.dir); err != nil {
		return cell{}, err
	}
	if err := d.s.Mount(ctx, c.dir, c.url); err != nil {
		return cell{}, err
	}
	if err := d.way.compare(ctx, c); err != nil {
		return cell{}, err
	}
	return cell{Text: "equal", Value: float64(d.tree.files), Unit: "files equal"}, nil
}

func (d *demo) fsck(ctx context.Context, c *column) (cell, error) {
	err := d.way.disk(ctx, c, treeVolume, func(path string) error {
		out, err := d.s.Run(ctx, "e2fsck", "-f", "-n", path)
		if err == nil && strings.Contains(out, "FIXED") {
			err = fmt.Errorf("e2fsck found errors")
		}
		return err
	})
	return cell{Text: "clean"}, err
}

func rate(bytes int64, d time.Duration) cell {
	mb := float64(bytes) / 1e6 / d.Seconds()
	return cell{Text: fmt.Sprintf("%.0f MB/s", mb), Value: mb, Unit: "MB/s"}
}

func perSecond(n int64, d time.Duration) cell {
	v := float64(n) / d.Seconds()
	return cell{Text: thousands(int64(v)) + " /s", Value: v, Unit: "1/s"}
}

// thousands spells a number with thin groups: 12 345.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
