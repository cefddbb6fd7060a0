package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// checkParent refuses, for root, a mount point whose parent somebody else could
// turn into something else while it is being mounted.
func checkParent(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	parent := filepath.Dir(dir)
	fi, err := os.Stat(parent)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case ok && st.Uid != 0:
		return fmt.Errorf("%s belongs to user %d, who could replace %s: mount below a directory of root", parent, st.Uid, dir)
	case fi.Mode().Perm()&0o002 != 0 && fi.Mode()&os.ModeSticky == 0:
		return fmt.Errorf("everybody may write to %s and could replace %s: mount elsewhere, or chmod o-w %s", parent, dir, parent)
	}
	return nil
}
