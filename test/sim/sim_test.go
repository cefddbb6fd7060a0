package sim

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/kvstore"
)

// seedsShort is how many seeds `make test` runs per shape; KVBFS_SIM_SEEDS is for more.
const seedsShort = 10

// firstSeed and seeds come from the environment: KVBFS_SEED repeats one run.
func seeds(t *testing.T) (first uint64, n int) {
	t.Helper()
	first, n = uint64(time.Now().UnixNano()), seedsShort
	if testing.Short() {
		n = 2
	}
	if s := os.Getenv("KVBFS_SIM_SEEDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KVBFS_SIM_SEEDS: %v", err)
		}
	}
	if s := os.Getenv("KVBFS_SEED"); s != "" {
		var err error
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("KVBFS_SEED: %v", err)
		}
	}
	t.Logf("seeds: KVBFS_SEED=%d KVBFS_SIM_SEEDS=%d", first, n)
	return first, n
}

// perClient is how many operations a client does: KVBFS_SIM_OPERATIONS is for long
// histories, which take the checker far longer.
func perClient() int {
	if n, err := strconv.Atoi(os.Getenv("KVBFS_SIM_OPERATIONS")); err == nil {
		return n
	}
	return 20
}

// shape derives the rest of a run from its seed, so that the seed alone repeats it.
func shape(seed uint64) Config {
	return Config{
		Seed: seed, Plan: Plans[seed%uint64(len(Plans))],
		Servers: []int{1, 3}[seed/5%2], Connections: []int{1, 8}[seed/10%2],
		Clients: []int{3, 5}[seed/20%2], Operations: perClient(),
		Cache: []int64{0, 1 << 20}[seed/40%2],
		// 3 and 7 have no factor in common with what is above, nor with each other: in
		// the long run all goes with all.
		WriteBack: writeback.Config{
			MaxDirty: []int64{0, 2 * kvstore.BlockSize, 1 << 20}[seed%3],
			MaxAge:   []time.Duration{2 * time.Millisecond, time.Hour}[seed%7%2],
		},
	}
}

// model is one block: its content, changed by whole blocks, sectors and discards.
//
// In one thing it is less than a register. Discards take no claim, so a write that is
// under way while its block is discarded looks again and is done once more over the
// zeros. A reader may thus see the write, the zeros, and the write again, all before
// the write is answered. For each pair of a write and a discard that overlap there is
// an echo: the same write, within the same time, that may happen or not.
var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{content{}} },
	Step: func(state, in, out any) []any {
		s, o := state.(content), in.(operation)
		if o.kind == opRead {
			if s == out.(content) {
				return []any{s}
			}
			return nil
		}
		changed := o.apply(s)
		if o.echo && changed != s {
			return []any{s, changed}
		}
		return []any{changed}
	},
	Equal: func(a, b any) bool { return a.(content) == b.(content) },
}).ToModel()

// apply returns what a change makes of a block.
func (o operation) apply(s content) content {
	switch o.kind {
	case opWrite:
		for i := range s {
			s[i] = o.id
		}
	case opSector:
		s[o.sector] = o.id
	case opDiscard:
		s = content{}
	}
	return s
}

// withEchoes adds the echoes to the history of a block.
func withEchoes(all []operation) []operation {
	out := all[:len(all):len(all)]
	for _, w := range all {
		for _, d := range all {
			if (w.kind == opWrite || w.kind == opSector) && d.kind == opDiscard && w.called < d.done && d.called < w.done && seenEarly(w, all) {
				e := w
				e.client, e.echo = 1000+len(out), true
				out = append(out, e)
			}
		}
	}
	return out
}

// seenEarly says whether a write was seen before it was answered. Else it may just as
// well have happened once, at its end, and echoes would only be work for the checker.
func seenEarly(w operation, all []operation) bool {
	return slices.ContainsFunc(all, func(r operation) bool {
		return r.kind == opRead && r.called < w.done && slices.Contains(r.saw[:], w.id)
	})
}

// check looks whether the history of one block is linearizable.
func check(all []operation) porcupine.CheckResult {
	all = withEchoes(all)
	ops := make([]porcupine.Operation, len(all))
	for i, o := range all {
		ops[i] = porcupine.Operation{ClientId: o.client, Input: o, Output: o.saw, Call: o.called, Return: o.done}
	}
	// Far more than any takes: what is not decided counts as a failure.
	return porcupine.CheckOperationsTimeout(model, ops, 5*time.Minute)
}

// run runs one seed in a bubble of its own.
func run(t *testing.T, c Config) (all []operation, faults, ghosts int, trace uint64) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, c.Seed)
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(c.Seed, c.Plan, c.Servers)
		if os.Getenv("KVBFS_SIM_LOG") != "" {
			w.log = func(line string) { fmt.Fprintln(os.Stderr, line) }
		}
		all = history(t, c, w)
		faults, ghosts, trace = w.Faults(), w.Ghosts(), w.Trace()
	})
	return all, faults, ghosts, trace
}

// TestLinearizable: clients of one volume over servers that stop, links that are
// reset and cut: every request succeeds, and each block is a register, also while
// writes are deferred.
func TestLinearizable(t *testing.T) {
	first, n := seeds(t)
	operations, faults, ghosts := 0, 0, 0
	for i := range n {
		c := shape(first + uint64(i))
		t.Run(fmt.Sprint(c.Seed), func(t *testing.T) {
			all, f, g, _ := run(t, c)
			operations, faults, ghosts = operations+len(all), faults+f, ghosts+g
			for _, block := range blocks {
				var part []operation
				for _, o := range all {
					if o.block == block {
						part = append(part, o)
					}
				}
				if got := check(part); got != porcupine.Ok {
					t.Errorf("%v: the history of block %d is not linearizable (%v)", c, block, got)
					for _, o := range part {
						t.Log(o)
					}
				}
			}
			if t.Failed() {
				t.Logf("again: KVBFS_SEED=%d KVBFS_SIM_SEEDS=1 KVBFS_SIM_OPERATIONS=%d go test -run TestLinearizable ./test/sim/", c.Seed, c.Operations)
			}
		})
	}
	t.Logf("%d histories, %d operations, %d faults, %d ghosts", n, operations, faults, ghosts)
	if n >= len(Plans) && faults == 0 {
		t.Error("no fault was injected")
	}
}

// TestSameSeedSameRun runs seeds again and compares all that travelled, and when. It
// has one client: of several, the runtime chooses who goes first when two of them
// wait for one claim. On a loaded machine it interrupts even one thread at any place,
// and who was to go next goes first; so a run may have to be repeated, often where the
// hypervisor interrupts it.
func TestSameSeedSameRun(t *testing.T) {
	first, _ := seeds(t)
	// One thread: chance between goroutines that wake at one instant is the runtime's.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for i := range uint64(len(Plans)) {
		c := shape(first + i)
		c.Clients = 1
		seen := map[uint64]bool{}
		for k := range 30 {
			var trace uint64
			t.Run(fmt.Sprint(c.Seed, "/", k), func(t *testing.T) { _, _, _, trace = run(t, c) })
			if seen[trace] {
				seen = nil
				break
			}
			seen[trace] = true
		}
		if seen != nil {
			t.Errorf("%v: %d runs, no two of them equal: %x", c, len(seen), slices.Collect(maps.Keys(seen)))
		}
	}
}

// TestCheckerFinds: the checker is worth what it notices.
func TestCheckerFinds(t *testing.T) {
	one := content{1, 1, 1, 1, 1, 1, 1, 1}
	good := []operation{
		{kind: opWrite, id: 1, called: 1, done: 2},
		{kind: opRead, saw: one, called: 3, done: 4},
	}
	if got := check(good); got != porcupine.Ok {
		t.Errorf("a good history: %v", got)
	}
	for name, last := range map[string]operation{
		"old":  {kind: opRead, saw: content{}, called: 5, done: 6},
		"torn": {kind: opRead, saw: content{1, 1, 1}, called: 5, done: 6},
		"new":  {kind: opRead, saw: content{2}, called: 5, done: 6},
	} {
		if got := check(append(good[:2:2], last)); got != porcupine.Illegal {
			t.Errorf("%s: %v", name, got)
		}
	}
}
