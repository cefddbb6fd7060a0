//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// TestSentinel: a master that Sentinels watch dies, hangs, or is replaced by a replica
// that has missed the last writes. TestFaultsOverRedis has the faults that it survives.
func TestSentinel(t *testing.T) {
	rig.RequireFUSE(t)
	sideBySide(t, map[string]func(t *testing.T){
		"killed": sentinelKilled,
		"hung":   sentinelHung,
		"behind": func(t *testing.T) {
			w := redistest.Sentinel(t, 1, redistest.MemoryMB(256))
			// 40 MB: sockets on the way to a replica hold some ten at most.
			behind(t, w.URL(), 10<<10, w.Master, w.Replicas[0], w.TakenOver)
		},
	})
}

// sentinelKilled: the master dies under fio verify. I/O pauses and goes on at the
// replica that takes over. What was flushed is there, since flushes wait for a replica;
// what the master acknowledged in its last moment and had not sent is lost (Redis promises
// no more), and then kvbfs has said so.
func sentinelKilled(t *testing.T) {
	w := redistest.Sentinel(t, 2, redistest.MemoryMB(256))
	r := rig.New(t, 4*time.Minute)
	const blocks = 64
	r.Create(w.URL(), "kept", "16M")
	r.Create(w.URL(), "busy", "64M")
	m := r.Mount(w.URL(), "--wait-replicas=1")
	f := rig.Direct(t, m.Image("kept"))
	fill(t, f, blocks, 1) // flushes
	res := verifying(t, r, m.Image("busy"), 3*time.Second, func() {
		w.Master.Stop()
		rig.Eventually(t, time.Minute, "a replica took over", w.TakenOver)
		w.Patience(time.Hour) // one failover, not two
		begin := time.Now()
		t.Logf("answered %v after a replica was the master", firstAnswer(t, f).Sub(begin).Round(time.Millisecond))
	})
	if whole, _, _ := holds(t, f, blocks, 1); whole != blocks {
		t.Errorf("%d of %d flushed blocks are there", whole, blocks)
	}
	if logged(t, r, "went back in time") > 0 {
		t.Logf("the replica that took over had not got the last writes; it was found (fio: %d)", res.Code)
		f.Close()
		m.Kill()
		return
	}
	if res.Code != 0 {
		t.Errorf("fio over the death of a master: status %d\n%s", res.Code, res.All())
	}
	fill(t, f, blocks, 2) // the flush waits for the replica that is left
	f.Close()
	m.Umount()
	m.Mount(w.URL(), "--wait-replicas=1")
	f = rig.Direct(t, m.Image("kept"))
	if whole, _, _ := holds(t, f, blocks, 2); whole != blocks {
		t.Errorf("%d of %d blocks that were written after the failover are there", whole, blocks)
	}
	f.Close()
	m.Umount()
}

// sentinelHung: the master hangs, having sent its replica all that it acknowledged. What
// it is asked meanwhile is done by the replica that takes over; when it goes on, thinking
// that it is a master still, nobody listens to it.
func sentinelHung(t *testing.T) {
	w := redistest.Sentinel(t, 1, redistest.MemoryMB(256))
	r := rig.New(t, 4*time.Minute)
	const blocks = 64
	r.Create(w.URL(), "v", "16M")
	m := r.Mount(w.URL())
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, blocks, 1)
	w.Master.Replicated()
	w.Master.Pause()
	t.Cleanup(w.Master.Resume)
	fill(t, f, blocks, 2)
	if !w.TakenOver() {
		t.Error("writes went on, and no replica is the master")
	}
	w.Master.Resume()
	fill(t, f, blocks, 3)
	rig.Eventually(t, time.Minute, "the old master follows the new one", func() bool {
		return w.Master.Info("replication", "master_link_status") == "up"
	})
	if whole, _, _ := holds(t, f, blocks, 3); whole != blocks {
		t.Errorf("%d of %d blocks are there after the old master came back", whole, blocks)
	}
	if n := logged(t, r, "went back in time"); n != 0 {
		t.Errorf("a replica that had all went back in time, the log says %d times", n)
	}
	f.Close()
	m.Umount()
	m.Mount(w.URL())
	f = rig.Direct(t, m.Image("v"))
	if whole, _, _ := holds(t, f, blocks, 3); whole != blocks {
		t.Errorf("%d of %d blocks are there after mounting again", whole, blocks)
	}
	f.Close()
	m.Umount()
}
