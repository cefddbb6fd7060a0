package chain

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func (m *machine) Spawn(name string, args ...string) (int, error) {
	path, err := lookPath(name)
	if err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() { _ = cmd.Wait() }() // no zombie while we live
	return cmd.Process.Pid, nil
}

func (m *machine) Alive(pid int, name string) bool {
	if pid <= 0 {
		return false
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	// pid (comm) state ...
	head, tail, _ := strings.Cut(string(b), ") ")
	return strings.HasSuffix(head, "("+name) && !strings.HasPrefix(tail, "Z")
}

func (m *machine) Find(ctx context.Context, name string, args ...string) (int, error) {
	return bounded(ctx, "/proc", func() (int, error) {
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return 0, err
		}
		for _, p := range procs {
			pid, err := strconv.Atoi(p.Name())
			if err != nil || !m.Alive(pid, name) {
				continue
			}
			line, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
			if err != nil {
				continue // it has ended, or is somebody else's
			}
			words := strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
			if len(words) > len(args) && slices.Equal(words[1:1+len(args)], args) {
				return pid, nil
			}
		}
		return 0, nil
	})
}
