package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// A process that is killed leaves connections behind, and what it sent on them the
// server may still execute, after its successor wrote something newer. So data
// connections are named (CLIENT SETNAME) after the process, and before its first change
// a store has the servers drop those of dead processes of this machine:
//
//	kvbfs-<boot id>-<pid namespace>-<pid>-<start time>-<random>
//
// Processes of other machines, boots and pid namespaces are none of its business.

// family is how the names of all processes begin that this one can tell dead from
// living; empty if /proc does not say.
func family() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ns, err2 := os.Readlink("/proc/self/ns/pid") // pid:[4026531836]
	if err != nil || err2 != nil || len(boot) < 8 {
		return ""
	}
	return fmt.Sprintf("kvbfs-%s-%s-", boot[:8], strings.Trim(ns, "pid:[]"))
}

// startTime of a process in clock ticks since boot; false if there is no such process.
func startTime(pid int) (string, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// pid (comm) state ...: the command's name may hold anything, also ')'.
	i := bytes.LastIndexByte(stat, ')')
	if err != nil || i < 0 {
		return "", false
	}
	f := bytes.Fields(stat[i+1:])
	if len(f) < 20 || string(f[0]) == "Z" {
		return "", false
	}
	return string(f[19]), true
}

// ownName is the name of this store's data connections.
func ownName() string {
	start, _ := startTime(os.Getpid())
	prefix := family()
	if prefix == "" || start == "" {
		return fmt.Sprintf("kvbfs-unknown-%016x", rand.Uint64())
	}
	return fmt.Sprintf("%s%d-%s-%08x", prefix, os.Getpid(), start, rand.Uint32())
}

// isDead says whether a connection's name is that of a process that is gone.
func isDead(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	f := strings.Split(rest, "-")
	if !ok || prefix == "" || len(f) < 3 {
		return false
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		return false
	}
	start, lives := startTime(pid)
	return !lives || start != f[1]
}

// drainDead begins to wait until a node is done with the connections of processes
// that were killed.
func (n *node) drainDead() *wire.Drain {
	prefix := family()
	asked := func(ctx context.Context) (has, answered bool) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		text, err := n.admin.ClientList(ctx).Result()
		var said goredis.Error
		if errors.As(err, &said) {
			return true, true // it answers and does not tell
		}
		if err != nil {
			return true, false
		}
		for line := range strings.Lines(text) {
			id, name := "", ""
			for _, f := range strings.Fields(line) {
				if v, ok := strings.CutPrefix(f, "id="); ok {
					id = v
				} else if v, ok := strings.CutPrefix(f, "name="); ok {
					name = v
				}
			}
			if isDead(name, prefix) {
				has = true
				_ = n.admin.ClientKillByFilter(ctx, "ID", id).Err()
			}
		}
		return has, true
	}
	return wire.StartDrain(n.store.helpers, asked, func() {
		n.store.cfg.Log("warning: redis %s does not say whether it is done with the connections of a process that was killed (CLIENT LIST); going on after %v", n.addr, wire.DrainLimit)
	})
}
