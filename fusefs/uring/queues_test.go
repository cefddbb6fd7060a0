package uring

import (
	"fmt"
	"testing"
)

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string]string{
		"0": "[0]", "0-3": "[0 1 2 3]", "0,2,4-5": "[0 2 4 5]", "1-1,7": "[1 7]",
		"": "", "-": "", "0-": "", "3-1": "", "1,1": "", "2,0-1": "", "0-99999999999": "", "0-100000000": "", "a": "", "0, 1": "",
	} {
		cpus, err := parseCPUs(list)
		if got := fmt.Sprint(cpus); want == "" && err == nil || want != "" && (err != nil || got != want) {
			t.Errorf("%q: %v, %v, want %s", list, cpus, err, want)
		}
	}
}

// TestDepths: a queue is deep if its CPU is online, wherever this process may run and
// whatever the numbers are.
func TestDepths(t *testing.T) {
	for _, c := range []struct {
		online             []int
		queues, room, most int
		want               string
	}{
		{[]int{0, 1}, 2, 256, 128, "[128 128]"},
		{[]int{0, 1, 2, 3}, 4, 256, 128, "[64 64 64 64]"},
		{[]int{0, 2, 4}, 6, 96, 128, "[32 8 32 8 32 8]"},
		{[]int{1}, 2, 256, 128, "[8 128]"},
		{[]int{0, 1, 9}, 4, 256, 128, "[128 128 8 8]"}, // came meanwhile
		{[]int{0}, 5, 12, 128, "[12 3 3 3 3]"},
		{[]int{0, 1, 2}, 4, 2, 128, "[1 1 1 1]"},
		{[]int{0, 1}, 3, 256, 4, "[4 4 4]"},
	} {
		if got := fmt.Sprint(depths(c.online, c.queues, c.room, c.most)); got != c.want {
			t.Errorf("%v of %d CPUs, room for %d, at most %d: %s, want %s", c.online, c.queues, c.room, c.most, got, c.want)
		}
	}
}

// TestDeal: each queue once, and those of CPUs that are online are spread over the threads.
func TestDeal(t *testing.T) {
	for _, c := range []struct {
		online  []int
		queues  int
		threads int
		want    string
	}{
		{[]int{0, 1, 2, 3}, 4, 2, "[[{0 9} {2 9}] [{1 9} {3 9}]]"},
		{[]int{0, 2, 4, 6}, 8, 2, "[[{0 9} {4 9} {1 9} {5 9}] [{2 9} {6 9} {3 9} {7 9}]]"},
		{[]int{1, 7}, 2, 2, "[[{1 9}] [{0 9}]]"},
	} {
		depths := make([]int, c.queues)
		for q := range depths {
			depths[q] = 9
		}
		if got := fmt.Sprint(deal(c.online, depths, c.threads)); got != c.want {
			t.Errorf("%v of %d CPUs, %d threads: %s, want %s", c.online, c.queues, c.threads, got, c.want)
		}
	}
}
