package uring

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

const (
	// minDepth is what a queue has at least: with one entry it works, with one at a time.
	minDepth = 1
	// spareDepth is what a queue has whose CPU is away, and may come: its memory is not
	// touched until then.
	spareDepth = 8
)

// Queues returns the number of queues of the kernel: its possible CPUs.
func Queues() (int, error) {
	cpus, err := readCPUs("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	return cpus[len(cpus)-1] + 1, nil
}

// online says which CPUs requests may come from. The kernel takes the queue of the CPU
// that a requester runs on: those that this process may run on say nothing about it, nor
// does their number, as CPUs are not always counted through. All, if nobody can say.
func online(queues int) []int {
	cpus, err := readCPUs("/sys/devices/system/cpu/online")
	if err != nil {
		cpus = nil
		for q := range queues {
			cpus = append(cpus, q)
		}
	}
	return cpus
}

func readCPUs(file string) ([]int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseCPUs(strings.TrimSpace(string(b)))
}

// parseCPUs reads a list of the kernel, as 0-3,8, in rising order.
func parseCPUs(list string) (cpus []int, err error) {
	for run := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(run, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil || a > b || b > 1<<16 || len(cpus) > 0 && a <= cpus[len(cpus)-1] {
			return nil, fmt.Errorf("CPUs %q: not a list", list)
		}
		for ; a <= b; a++ {
			cpus = append(cpus, a)
		}
	}
	return cpus, nil
}

// depths returns how many entries each queue has: those of the CPUs that are online share
// what there is room for, up to most each, and the others share as much, up to spareDepth.
func depths(online []int, queues, room, most int) []int {
	d := make([]int, queues)
	away := queues
	for _, cpu := range online {
		if cpu < queues {
			away--
		}
	}
	deep := max(minDepth, min(most, room/max(1, queues-away)))
	spare := max(minDepth, min(deep, spareDepth, room/max(1, away)))
	for q := range d {
		d[q] = spare
	}
	for _, cpu := range online {
		if cpu < queues {
			d[cpu] = deep
		}
	}
	return d
}

// deal gives the queues to threads in turn: first those of CPUs that are online, so that
// no thread has nothing to do, or all of it.
func deal(online, depths []int, threads int) (each [][]queueSpec) {
	each = make([][]queueSpec, threads)
	dealt := make([]bool, len(depths))
	n := 0
	give := func(q int) {
		if q < len(depths) && !dealt[q] {
			dealt[q] = true
			each[n%threads] = append(each[n%threads], queueSpec{qid: q, depth: depths[q]})
			n++
		}
	}
	for _, q := range online {
		give(q)
	}
	for q := range depths {
		give(q)
	}
	return each
}
