//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// bankCycles is how often the daemon is killed per file system;
// KVBFS_BANK_CYCLES raises it (make soak CYCLES=N).
func bankCycles(t *testing.T) int {
	if s := os.Getenv("KVBFS_BANK_CYCLES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 4
}

// bankRotate is after how many cycles a new ledger begins, so that looking through
// it does not take over.
const bankRotate = 10

// TestBank kills the daemon under a file system on which sqlite commits with
// each transaction stable, again and again: after `up` and the journal's replay the file
// system is clean and no transaction that was acknowledged is missing. In its short form
// it does so once over a Redis and over a Redis Cluster.
func TestBank(t *testing.T) {
	rig.RequireLoop(t)
	full := os.Getenv("KVBFS_BANK_CYCLES") != ""
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			n := bankCycles(t)
			r := rig.New(t, bankTime(n))
			bankRounds(t, r, r.MemcachedTCP(1024).URL(), fs, n)
		})
	}
	over := map[string]func(t *testing.T){}
	for i, kind := range []string{"redis", "cluster"} {
		for j, fs := range []string{"ext4", "xfs"} {
			n := bankCycles(t)
			if !full && i != j {
				continue
			}
			if !full {
				n = 1
			}
			over[kind+" "+fs] = func(t *testing.T) {
				r := rig.New(t, bankTime(n))
				bankRounds(t, r, engine(t, r, kind, 1024).URL(), fs, n)
			}
		}
	}
	sideBySide(t, over)
}

// bankTime is how long so many kills take at most.
func bankTime(n int) time.Duration { return 2*time.Minute + time.Duration(n)*20*time.Second }

// bankRounds kills n times.
func bankRounds(t *testing.T, r *rig.Rig, store, fs string, n int) {
	b := &bankRun{t: t, r: r, fs: fs, at: r.Mkdir("at"), store: store, rnd: rig.Rand(t)}
	total, rotate := int64(0), min(bankRotate, max(n/2, 1))
	for i := range n {
		if err := b.cycle(i%rotate == 0); err != nil {
			t.Fatalf("after %d kills: %v", i+1, err)
		}
		if i%rotate == rotate-1 || i == n-1 {
			total += b.bank.Acknowledged()
		}
	}
	r.Kvbfs("down", "disk")
	t.Logf("%s: %d kills, %d acknowledged transactions, none lost", fs, n, total)
}

// TestBankFindsBugs: the bank notices a daemon that answers writes before they are
// stored.
func TestBankFindsBugs(t *testing.T) {
	rig.RequireLoop(t)
	r := rig.New(t, 5*time.Minute)
	r.Faulty("write kind=block present late")
	b := &bankRun{t: t, r: r, fs: "ext4", at: r.Mkdir("at"), store: r.MemcachedTCP(512).URL(), rnd: rig.Rand(t)}
	for i := range 20 {
		if err := b.cycle(i == 0); err != nil {
			t.Logf("found after %d kills: %v", i+1, err)
			return
		}
	}
	t.Error("twenty kills of a daemon that answers too early, and no loss was found")
}

type bankRun struct {
	t     *testing.T
	r     *rig.Rig
	fs    string
	at    string
	store string
	rnd   *rand.Rand
	bank  *rig.Bank
	banks int // that there were
}

// up brings the disk up, whatever state it is in.
func (b *bankRun) up() (chainJSON, error) {
	args := append([]string{"up", "disk", "--size", "768M", "--fs", b.fs, "--at", b.at, "--store", b.store, "--json"}, b.r.CacheArgs()...)
	res := b.r.TryKvbfs(args...)
	if res.Code != 0 {
		return chainJSON{}, fmt.Errorf("up: %s", res.All())
	}
	var c chainJSON
	return c, json.Unmarshal([]byte(res.Stdout), &c)
}

// cycle lets the bank work, kills the daemon under it, and looks at what is left.
func (b *bankRun) cycle(fresh bool) error {
	b.t.Helper()
	if _, err := b.up(); err != nil {
		return err
	}
	if fresh {
		db := filepath.Join(b.at, "ledger.db")
		b.r.Run("sh", "-ec", `rm -f "$0"*; sync -f "$(dirname "$0")"`, db)
		pragmas := rig.BankLog
		if b.banks++; b.banks%2 == 0 {
			pragmas = rig.BankJournal
		}
		b.bank = b.r.NewBank(db, pragmas)
	}
	before := b.bank.Acknowledged()
	pid := b.r.OnlyDaemon()
	stop := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- b.bank.Run(stop) }()
	for deadline := time.Now().Add(30 * time.Second); b.bank.Acknowledged() == before && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Duration(b.rnd.IntN(500)) * time.Millisecond)
	b.r.Run("kill", "-9", strconv.Itoa(pid))
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		return errors.New("sqlite hangs on a disk whose daemon was killed")
	}
	close(stop)
	if b.bank.Acknowledged() == before {
		return errors.New("nothing was committed before the kill")
	}
	c, err := b.up() // replays the journal
	if err != nil {
		return err
	}
	b.r.Run("umount", b.at)
	check := map[string][]string{"ext4": {"e2fsck", "-f", "-n", c.Device}, "xfs": {"xfs_repair", "-n", c.Device}}[b.fs]
	if res := b.r.Try(check...); res.Code != 0 {
		return fmt.Errorf("%v: status %d\n%s", check, res.Code, res.All())
	}
	if _, err := b.up(); err != nil {
		return err
	}
	return b.bank.Check()
}
