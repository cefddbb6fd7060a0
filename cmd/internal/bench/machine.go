package bench

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// machine describes this one. What cannot be found out stays empty.
func machine(ctx context.Context) result.Machine {
	m := result.Machine{CPUs: runtime.NumCPU()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + kernelRelease(unix.ByteSliceToString(u.Release[:]))
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.Memory, _ = parseStatus(text, "MemTotal")
	}
	if out, err := exec.CommandContext(ctx, "memcached", "--version").Output(); err == nil {
		m.Memcached = strings.TrimSpace(string(out))
	}
	return m
}

// kernelRelease leaves a distribution's or a cloud's suffix away: 6.18.44.
func kernelRelease(s string) string {
	version, _, _ := strings.Cut(s, "-")
	return version
}

// availableMemory is what can be had without swapping, in bytes; 0: not known.
func availableMemory() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	n, _ := parseStatus(text, "MemAvailable")
	return n
}
