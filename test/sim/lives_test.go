package sim

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
)

// The number of processes of a run: two are killed.
const livesOfRun = 3

// mortal is one block of a process that may be killed.
type mortal struct {
	now content
	// since is what a kill may leave: what the block was since the last flush that
	// covers it, now included. Where nothing is deferred, it is only what it is now.
	since []content
	// deferring: a flush was asked for, so writes may be deferred.
	deferring bool
}

// mortalModel is model, with kills. Write-through, a kill loses nothing that was
// answered. With write-back it loses what was not flushed: the block is then, whole,
// one of those that it was since. As a flush is in the history of every block, at the
// moment when it was asked for, nothing that was answered before one is lost while
// something that was begun after it is there: that is the order across flushes.
// What was under way when the process was killed happened or did not.
func mortalModel(first content, deferred bool) porcupine.Model {
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{mortal{now: first, since: []content{first}}} },
		Step: func(state, in, out any) []any {
			s, o := state.(mortal), in.(operation)
			switch o.kind {
			case opRead:
				if s.now != out.(content) {
					return nil
				}
				return []any{s}
			case opSurvive:
				saw := out.(content)
				if !slices.Contains(s.since, saw) {
					return nil
				}
				return []any{mortal{now: saw, since: []content{saw}}}
			case opFlush:
				if s.deferring = deferred; !o.maybe {
					s.since = []content{s.now}
				}
				return []any{s}
			}
			next := s.to(o.apply(s.now))
			if (o.echo || o.maybe) && next.now != s.now {
				return []any{s, next}
			}
			return []any{next}
		},
		Equal: func(a, b any) bool {
			x, y := a.(mortal), b.(mortal)
			return x.now == y.now && x.deferring == y.deferring && slices.Equal(x.since, y.since)
		},
	}).ToModel()
}

// to returns the block changed.
func (s mortal) to(c content) mortal {
	if !s.deferring {
		return mortal{now: c, since: []content{c}}
	}
	s.now = c
	if !slices.Contains(s.since, c) {
		s.since = append(slices.Clip(s.since), c)
	}
	return s
}

// checkLife looks whether what a process did to one block, and what its successor
// found, fits the model.
func checkLife(first content, deferred bool, all []operation) porcupine.CheckResult {
	all = withEchoes(all)
	ops := make([]porcupine.Operation, len(all))
	for i, o := range all {
		ops[i] = porcupine.Operation{ClientId: o.client, Input: o, Output: o.saw, Call: o.called, Return: o.done}
	}
	return porcupine.CheckOperationsTimeout(mortalModel(first, deferred), ops, 5*time.Minute)
}

// survived is what a successor found of a block.
func survived(all []operation, block int64) content {
	for _, o := range all {
		if o.kind == opSurvive && o.block == block {
			return o.saw
		}
	}
	return content{}
}

// TestKilled: the process is killed in the middle of all that TestLinearizable has,
// and another one goes on where it was, and so on. Every request of those that live
// succeeds; write-through nothing that was answered is lost; with write-back only what
// was not flushed, never out of order across flushes.
func TestKilled(t *testing.T) {
	first, n := seeds(t)
	operations, lost, deferring := 0, 0, 0
	for i := range n {
		c := shape(first + uint64(i))
		c.Operations = 12
		t.Run(fmt.Sprint(c.Seed), func(t *testing.T) {
			var all [][]operation
			cryptotest.SetGlobalRandom(t, c.Seed)
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(c.Seed, c.Plan, c.Servers)
				if os.Getenv("KVBFS_SIM_LOG") != "" {
					w.log = func(line string) { fmt.Fprintln(os.Stderr, line) }
				}
				all = lives(t, c, w, livesOfRun)
			})
			if c.WriteBack.MaxDirty > 0 {
				deferring++
			}
			for life, ops := range all {
				operations += len(ops)
				lost += checkBlocks(t, c, all, life)
			}
			if t.Failed() {
				t.Logf("again: KVBFS_SEED=%d KVBFS_SIM_SEEDS=1 go test -run TestKilled ./test/sim/", c.Seed)
			}
		})
	}
	t.Logf("%d runs, %d with write-back, %d operations; %d blocks lost what was not flushed", n, deferring, operations, lost)
	if n >= 100 && lost == 0 {
		t.Error("no kill lost anything: not much of a test of write-back")
	}
}

// checkBlocks checks one life, block by block, and counts those that lost something
// that a write had been answered for.
func checkBlocks(t *testing.T, c Config, all [][]operation, life int) (lost int) {
	for _, block := range blocks {
		var begin content
		if life > 0 {
			begin = survived(all[life-1], block)
		}
		var part []operation
		for _, o := range all[life] {
			if o.block == block || o.kind == opFlush {
				part = append(part, o)
			}
		}
		if got := checkLife(begin, c.WriteBack.MaxDirty > 0, part); got != porcupine.Ok {
			t.Errorf("%v: process %d: block %d, which was %v, does not fit the model (%v)", c, life, block, begin, got)
			for _, o := range part {
				t.Log(o)
			}
		} else if checkLife(begin, false, part) != porcupine.Ok {
			lost++
		}
	}
	return lost
}

// TestMortalModel: the model allows what write-back may do, and nothing else.
func TestMortalModel(t *testing.T) {
	whole := func(id uint32) (c content) {
		for i := range c {
			c[i] = id
		}
		return c
	}
	write := func(id uint32, at int64) operation {
		return operation{kind: opWrite, id: id, called: at, done: at + 1}
	}
	flush := func(at int64) operation {
		return operation{kind: opFlush, block: -1, called: at, done: at + 1}
	}
	found := func(id uint32) operation {
		return operation{kind: opSurvive, saw: whole(id), called: 100, done: 101}
	}
	cut := func(o operation) operation { o.maybe, o.done = true, 99; return o }
	for _, c := range []struct {
		name          string
		all           []operation
		through, back porcupine.CheckResult
	}{
		{"all is there", []operation{write(1, 1), flush(3), write(2, 5), found(2)}, porcupine.Ok, porcupine.Ok},
		{"what was not flushed is lost", []operation{write(1, 1), flush(3), write(2, 5), found(1)}, porcupine.Illegal, porcupine.Ok},
		{"one in between is there", []operation{write(1, 1), flush(3), write(2, 5), write(3, 7), write(4, 9), found(3)}, porcupine.Illegal, porcupine.Ok},
		{"what was flushed is lost", []operation{write(1, 1), flush(3), write(2, 5), flush(7), write(3, 9), found(1)}, porcupine.Illegal, porcupine.Illegal},
		{"lost before any flush", []operation{write(1, 1), write(2, 5), found(1)}, porcupine.Illegal, porcupine.Illegal},
		{"a flush that was cut off covers nothing", []operation{write(1, 1), flush(3), write(2, 5), cut(flush(7)), found(1)}, porcupine.Illegal, porcupine.Ok},
		{"a write that was cut off happened", []operation{write(1, 1), flush(3), cut(write(2, 5)), found(2)}, porcupine.Ok, porcupine.Ok},
		{"a write that was cut off did not happen", []operation{write(1, 1), flush(3), cut(write(2, 5)), found(1)}, porcupine.Ok, porcupine.Ok},
		{"what nobody wrote", []operation{write(1, 1), flush(3), write(2, 5), found(7)}, porcupine.Illegal, porcupine.Illegal},
		{"a read of what is lost later", []operation{write(1, 1), flush(3), write(2, 5), {kind: opRead, saw: whole(2), called: 7, done: 8}, found(1)}, porcupine.Illegal, porcupine.Ok},
		{"a read that misses what is dirty", []operation{write(1, 1), flush(3), write(2, 5), {kind: opRead, saw: whole(1), called: 7, done: 8}, found(1)}, porcupine.Illegal, porcupine.Illegal},
	} {
		if got := checkLife(content{}, false, c.all); got != c.through {
			t.Errorf("%s, write-through: %v", c.name, got)
		}
		if got := checkLife(content{}, true, c.all); got != c.back {
			t.Errorf("%s, write-back: %v", c.name, got)
		}
	}
}
