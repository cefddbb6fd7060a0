package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// machineTime is what /proc/stat says of all CPUs since the boot, in ticks.
type machineTime struct{ busy, stolen, total uint64 }

// parseStat reads the first line of /proc/stat: user nice system idle iowait irq
// softirq steal, then guest times, which user and nice contain already.
func parseStat(text []byte) (machineTime, error) {
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	f := strings.Fields(string(line))
	if len(f) < 9 || f[0] != "cpu" {
		return machineTime{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var m machineTime
	for i, s := range f[1:9] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return machineTime{}, fmt.Errorf("/proc/stat: %w", err)
		}
		m.total += n
		switch i {
		case 3, 4: // idle, iowait
		case 7:
			m.stolen = n
		default:
			m.busy += n
		}
	}
	return m, nil
}

func readMachineTime() (machineTime, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTime{}, err
	}
	return parseStat(text)
}

// tick is the unit of /proc/stat: USER_HZ is 100 on every architecture that Go
// runs on.
const tick = 10 * time.Millisecond

// stealPercent is the share of the time between two readings that the host took.
func stealPercent(a, b machineTime) float64 {
	if b.total <= a.total {
		return 0
	}
	return 100 * float64(b.stolen-a.stolen) / float64(b.total-a.total)
}

// processTime sums the run time of all threads of a process. It is exact to the
// nanosecond, where /proc/PID/stat counts ticks; threads that ended are missed.
func processTime(pid int) (time.Duration, error) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // the thread ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(n)
	}
	if sum == 0 {
		return 0, fmt.Errorf("process %d has no run time: it ended, or the kernel keeps no schedstat", pid)
	}
	return sum, nil
}

// metered measures what the machine does while f runs, and completes its sample.
// f returns the number of I/Os. pid is the daemon's; 0: none.
func metered(pid int, f func() (result.Sample, int64, error)) (result.Sample, error) {
	before, err := readMachineTime()
	if err != nil {
		return result.Sample{}, err
	}
	var own time.Duration
	if pid > 0 {
		own, _ = processTime(pid) // without it that column stays empty
	}
	s, ios, err := f()
	if err != nil {
		return s, err
	}
	after, err := readMachineTime()
	if err != nil {
		return s, err
	}
	s.Steal = stealPercent(before, after)
	if ios > 0 {
		s.CPUUS = float64((time.Duration(after.busy-before.busy) * tick).Microseconds()) / float64(ios)
		if end, err := processTime(max(pid, 1)); pid > 0 && err == nil && end > own {
			s.DaemonUS = float64((end - own).Nanoseconds()) / 1e3 / float64(ios)
		}
	}
	return s, nil
}

// parseStatus reads a size in kB from /proc/PID/status or /proc/meminfo.
func parseStatus(text []byte, name string) (int64, error) {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s", name)
}
