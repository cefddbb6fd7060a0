package rig

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// Redis is a private Redis, the master of a private set with Sentinels, or the masters
// of a private Redis Cluster, as an Engine.
type Redis struct {
	t       testing.TB
	kind    string
	url     string
	nodes   []*redistest.Server
	cluster *redistest.ClusterNodes // nil: one server
}

var _ Engine = (*Redis)(nil)

// NewRedis starts one server of mb megabytes on a free TCP port.
func NewRedis(t testing.TB, mb int) *Redis {
	t.Helper()
	s := redistest.Start(t, redistest.TCP(), redistest.MemoryMB(mb))
	return &Redis{t: t, kind: "redis", url: s.URL(), nodes: []*redistest.Server{s}}
}

// NewRedisSentinel starts a master of mb megabytes, its replica, and Sentinels, which
// leave the master what it is for an hour: what happens when they do not is no business
// of an Engine.
func NewRedisSentinel(t testing.TB, mb int) *Redis {
	t.Helper()
	w := redistest.Sentinel(t, 1, redistest.MemoryMB(mb))
	w.Patience(time.Hour)
	return &Redis{t: t, kind: "sentinel", url: w.URL(), nodes: []*redistest.Server{w.Master}}
}

// NewRedisCluster starts three masters of mb megabytes each, without replicas.
func NewRedisCluster(t testing.TB, mb int) *Redis {
	t.Helper()
	c := redistest.Cluster(t, 3, 0, redistest.MemoryMB(mb))
	if os.Getenv("KVBFS_E2E_LONG") != "" {
		// There all of them are stopped for longer than they are patient: then they serve
		// again the sooner the less patient they are.
		c.Failover()
	}
	return &Redis{t: t, kind: "cluster", url: c.URL(), nodes: c.Servers, cluster: c}
}

// Kind implements Engine.
func (e *Redis) Kind() string { return e.kind }

// URL implements Engine.
func (e *Redis) URL() string { return e.url }

// Servers implements Engine.
func (e *Redis) Servers() (addrs []string) {
	for _, n := range e.nodes {
		addrs = append(addrs, n.Addr())
	}
	return addrs
}

// Stop implements Engine.
func (e *Redis) Stop() {
	for _, n := range e.nodes {
		n.Pause()
	}
}

// Continue implements Engine.
func (e *Redis) Continue() {
	for _, n := range e.nodes {
		n.Resume()
	}
}

// Empty implements Engine: one server is restarted, a cluster is emptied while it
// runs.
func (e *Redis) Empty() {
	if e.cluster == nil {
		e.nodes[0].Restart()
		return
	}
	for _, n := range e.nodes {
		n.Do("FLUSHALL")
	}
}

// Full implements Engine.
func (e *Redis) Full(mb int) (undo func()) {
	var undos []func()
	for _, n := range e.nodes {
		was := n.Client.ConfigGet(context.Background(), "maxmemory").Val()["maxmemory"]
		used, err := strconv.ParseInt(n.Info("memory", "used_memory"), 10, 64)
		if err != nil {
			e.t.Fatal(err)
		}
		n.Do("CONFIG", "SET", "maxmemory", used+int64(mb)<<20/int64(len(e.nodes)))
		undos = append(undos, func() { n.Do("CONFIG", "SET", "maxmemory", was) })
	}
	return func() {
		for _, f := range undos {
			f()
		}
	}
}

// holder returns the node that has a block, and the block's key.
func (e *Redis) holder(p Place) (*redistest.Server, string) {
	e.t.Helper()
	key, err := hex.DecodeString(p.Key)
	if err != nil {
		e.t.Fatalf("key %q: %v", p.Key, err)
	}
	for _, n := range e.nodes {
		if n.Addr() == p.Server || len(e.nodes) == 1 {
			return n, string(key)
		}
	}
	e.t.Fatalf("no node is called %q", p.Server)
	return nil, ""
}

// Delete implements Engine.
func (e *Redis) Delete(p Place) bool {
	n, key := e.holder(p)
	return n.Do("DEL", key).(int64) == 1
}

// Item implements Engine.
func (e *Redis) Item(p Place) Item {
	e.t.Helper()
	n, key := e.holder(p)
	v, err := n.Client.Get(context.Background(), key).Bytes()
	if err != nil {
		e.t.Fatalf("redis GET %s: %v", p.Key, err)
	}
	return Item{Data: v}
}

// SetItem implements Engine.
func (e *Redis) SetItem(p Place, it Item) {
	n, key := e.holder(p)
	n.Do("SET", key, it.Data)
}

// Items implements Engine.
func (e *Redis) Items() (sum int64) {
	for _, n := range e.nodes {
		sum += n.Do("DBSIZE").(int64)
	}
	return sum
}

// Await returns when all servers serve: a cluster whose nodes missed each other
// takes some seconds.
func (e *Redis) Await() {
	e.t.Helper()
	Eventually(e.t, settle, e.kind+" serves", func() bool {
		for _, n := range e.nodes {
			info, err := n.Client.ClusterInfo(context.Background()).Result()
			if e.cluster == nil {
				err = n.Client.Ping(context.Background()).Err()
			} else if !strings.Contains(info, "cluster_state:ok") {
				return false
			}
			if err != nil {
				return false
			}
		}
		return true
	})
}

// Wire implements Engine. The nodes of a cluster are told to announce the proxies'
// ports until the test ends, since clients go where a node says that it is.
func (e *Redis) Wire(t testing.TB) *Wire {
	t.Helper()
	if e.kind == "sentinel" {
		t.Fatal("there is no wire to a master that Sentinels watch")
	}
	w := &Wire{}
	var addrs []string
	for _, n := range e.nodes {
		p := NewProxy(t, n.Addr(), 0)
		w.proxies = append(w.proxies, p)
		addrs = append(addrs, p.Addr)
	}
	if e.cluster == nil {
		w.URL = "redis://" + addrs[0]
		return w
	}
	w.URL = "redis+cluster://" + strings.Join(addrs, ",")
	announce := func(port func(i int) string) {
		for i, n := range e.nodes {
			n.Do("CONFIG", "SET", "cluster-announce-port", port(i))
		}
		for _, n := range e.nodes {
			Eventually(t, settle, "all nodes know the ports", func() bool {
				nodes := fmt.Sprint(n.Do("CLUSTER", "NODES"))
				for i := range e.nodes {
					p := port(i)
					if p == "0" {
						p = e.nodes[i].Port()
					}
					if !strings.Contains(nodes, ":"+p+"@") {
						return false
					}
				}
				return true
			})
		}
	}
	announce(func(i int) string { return addrs[i][strings.LastIndexByte(addrs[i], ':')+1:] })
	t.Cleanup(func() { announce(func(int) string { return "0" }) })
	return w
}
