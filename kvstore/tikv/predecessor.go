package tikv

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tikv/client-go/v2/rawkv"

	"github.com/kvbfs/kvbfs/kvstore"
)

// What a process that is killed has sent may be executed after its successor wrote
// something newer. So a process leaves a mark before its first change, and takes it away
// when it closes the store with nothing left under way:
//
//	kvbfs-<boot id>-<pid namespace>-<pid>-<start time>-<random>
//
// Who finds marks of dead processes of this machine makes no change before hauntTime has
// passed. Those of other machines are the lease's business: see writeTime.

// maxMarks is how many marks are looked at.
const maxMarks = 4096

// predecessors are the processes that may have left something under way.
type predecessors struct {
	passed atomic.Bool
	turn   chan struct{} // of who looks; guards what follows
	found  int64         // of Boottime, when dead ones were found; 0: not yet
	mark   []byte        // our own
}

// family is how the marks of all processes begin that this one can tell dead from
// living; empty if /proc does not say.
func family() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ns, err2 := os.Readlink("/proc/self/ns/pid") // pid:[4026531836]
	if err != nil || err2 != nil || len(boot) < 8 {
		return ""
	}
	return fmt.Sprintf("kvbfs-%s-%s-", boot[:8], strings.Trim(ns, "pid:[]"))
}

// startTime of a process in clock ticks since boot; empty if there is no such process.
func startTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// pid (comm) state ...: the command's name may hold anything, also ')'.
	i := bytes.LastIndexByte(stat, ')')
	if err != nil || i < 0 {
		return ""
	}
	f := bytes.Fields(stat[i+1:])
	if len(f) < 20 || string(f[0]) == "Z" {
		return ""
	}
	return string(f[19])
}

// isDead says whether a mark is that of a process that is gone.
func isDead(mark, family string) bool {
	rest, ok := strings.CutPrefix(mark, family)
	f := strings.Split(rest, "-")
	if !ok || family == "" || len(f) < 3 {
		return false
	}
	pid, err := strconv.Atoi(f[0])
	return err == nil && startTime(pid) != f[1]
}

func markKey(name string) []byte { return []byte(prefix + "o" + name) }

// pass returns a function that ends when changes may begin.
func (p *predecessors) pass(s *Store) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if p.passed.Load() {
			return nil
		}
		select {
		case p.turn <- struct{}{}:
			defer func() { <-p.turn }()
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.passed.Load() {
			return nil
		}
		return p.look(ctx, s)
	}
}

// look waits until what dead processes sent has gone, and leaves our mark.
func (p *predecessors) look(ctx context.Context, s *Store) error {
	keys, _, err := s.raw.Scan(ctx, markKey(""), []byte(prefix+"p"), maxMarks, rawkv.ScanKeyOnly())
	if err != nil {
		return err
	}
	var dead [][]byte
	for _, k := range keys {
		if isDead(string(k[len(markKey("")):]), family()) {
			dead = append(dead, k)
		}
	}
	if len(dead) > 0 {
		if p.found == 0 {
			p.found = kvstore.Boottime()
			s.log("tikv %s: a process of this machine was killed; its last writes may come late: going on in %v", s.name, s.haunts.age)
		}
		if err := pause(ctx, s.haunts.age-time.Duration(kvstore.Boottime()-p.found)); err != nil {
			return err
		}
	}
	p.mark = markKey(fmt.Sprintf("%s%d-%s-%08x", family(), os.Getpid(), startTime(os.Getpid()), rand.Uint32()))
	if err := s.raw.Put(ctx, p.mark, []byte{1}); err != nil {
		return err
	}
	if len(dead) > 0 {
		if err := s.raw.BatchDelete(ctx, dead); err != nil {
			return err
		}
	}
	p.passed.Store(true)
	return nil
}

// leave takes our mark away if nothing of ours is under way. All channels are closed.
func (p *predecessors) leave(s *Store) {
	if !p.passed.Load() || s.haunts.until("", "\xff") != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), controlTime)
	defer cancel()
	if err := s.raw.Delete(ctx, p.mark); err != nil {
		s.log("tikv %s: the mark of this process stays: %v; the next one will wait for %v", s.name, err, s.haunts.age)
	}
}
