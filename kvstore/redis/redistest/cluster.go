package redistest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// slots of a Redis Cluster.
const slots = 16384

// ClusterNodes is a private Redis Cluster: masters first, then their replicas.
type ClusterNodes struct {
	t       testing.TB
	Servers []*Server
	opts    []Option
	ids     map[*Server]string
	patient time.Duration
}

// failoverTimeout is how long a master may be silent where one is to be replaced, and
// stalledTimeout where none is: longer than a machine is stalled.
const (
	failoverTimeout = 1500 * time.Millisecond
	stalledTimeout  = time.Minute
)

// Cluster starts a cluster of masters with a number of replicas each, and waits until
// it serves. Without replicas it begins with NoFailover: nobody could take over, and the
// cluster would only be down for some seconds.
func Cluster(t testing.TB, masters, replicas int, opts ...Option) *ClusterNodes {
	t.Helper()
	c := &ClusterNodes{t: t, opts: opts, ids: map[*Server]string{}, patient: failoverTimeout}
	for range masters * (1 + replicas) {
		c.start()
	}
	first := c.Servers[0]
	for i, s := range c.Servers {
		// Different epochs from the start: equal ones are settled slowly.
		s.Do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
		if i < masters {
			s.Do("CLUSTER", "ADDSLOTSRANGE", i*slots/masters, (i+1)*slots/masters-1)
		}
		if i > 0 {
			s.Do("CLUSTER", "MEET", first.Host(), first.Port())
		}
	}
	c.wait(len(c.Servers))
	for i, s := range c.Servers[masters:] {
		s.Do("CLUSTER", "REPLICATE", c.ids[c.Servers[i%masters]])
	}
	for _, s := range c.Servers[masters:] {
		Eventually(t, "a replica follows its master", func() bool { return s.Info("replication", "master_link_status") == "up" })
	}
	for _, s := range c.Servers {
		Eventually(t, "all nodes know the replicas", func() bool {
			return strings.Count(s.Do("CLUSTER", "NODES").(string), "slave") == masters*replicas
		})
	}
	if replicas == 0 {
		c.NoFailover()
	}
	return c
}

func (c *ClusterNodes) start() *Server {
	c.t.Helper()
	s := Start(c.t, append([]Option{TCP(), Args(
		"--cluster-enabled", "yes", "--cluster-node-timeout", strconv.FormatInt(c.patient.Milliseconds(), 10), "--cluster-replica-validity-factor", "0",
		"--repl-diskless-sync-delay", "0", "--repl-timeout", "10",
	)}, c.opts...)...)
	c.Servers = append(c.Servers, s)
	c.ids[s] = s.Do("CLUSTER", "MYID").(string)
	return s
}

// wait waits until every node knows all and the cluster serves.
func (c *ClusterNodes) wait(n int) {
	c.t.Helper()
	for _, s := range c.Servers {
		if s.PID() == 0 {
			continue
		}
		Eventually(c.t, "the cluster serves", func() bool {
			info, _ := s.Client.ClusterInfo(context.Background()).Result()
			// A node that is known by a handshake only has no name yet.
			nodes, _ := s.Client.ClusterNodes(context.Background()).Result()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", n)) &&
				nodes != "" && !strings.Contains(nodes, "handshake")
		})
	}
}

// NoFailover has masters stay what they are, though the machine stalls for a while;
// Failover ends that: one that is silent for 1.5 s is replaced.
func (c *ClusterNodes) NoFailover() { c.patience(stalledTimeout) }

// Failover undoes NoFailover.
func (c *ClusterNodes) Failover() { c.patience(failoverTimeout) }

func (c *ClusterNodes) patience(d time.Duration) {
	c.t.Helper()
	c.patient = d
	for _, s := range c.Servers {
		if s.PID() != 0 {
			s.Do("CONFIG", "SET", "cluster-node-timeout", d.Milliseconds())
		}
	}
}

// URL names the cluster as --store takes it.
func (c *ClusterNodes) URL() string { return "redis+cluster://" + strings.Join(c.Addrs(), ",") }

// Addrs are all nodes' addresses.
func (c *ClusterNodes) Addrs() (out []string) {
	for _, s := range c.Servers {
		out = append(out, s.Addr())
	}
	return out
}

// Masters are the servers that are masters by their own account.
func (c *ClusterNodes) Masters() (out []*Server) {
	for _, s := range c.Servers {
		if s.PID() != 0 && s.Info("replication", "role") == "master" {
			out = append(out, s)
		}
	}
	return out
}

// AddMaster starts one more master, without slots, and replicas of it.
func (c *ClusterNodes) AddMaster(replicas int) *Server {
	c.t.Helper()
	known := len(c.Servers)
	master := c.start()
	for range replicas {
		c.start()
	}
	for _, s := range c.Servers[known:] {
		s.Do("CLUSTER", "MEET", c.Servers[0].Host(), c.Servers[0].Port())
	}
	c.wait(known + 1 + replicas)
	for _, s := range c.Servers[known+1:] {
		s.Do("CLUSTER", "REPLICATE", c.ids[master])
		Eventually(c.t, "a replica follows its master", func() bool { return s.Info("replication", "master_link_status") == "up" })
	}
	return master
}

// Move moves slots [first, first+n) with all their keys, as a reshard does: both
// nodes serve meanwhile.
func (c *ClusterNodes) Move(from, to *Server, first, n int) {
	c.t.Helper()
	for slot := first; slot < first+n; slot++ {
		c.HalfMove(from, to, slot)
		to.Do("CLUSTER", "SETSLOT", slot, "NODE", c.ids[to])
		from.Do("CLUSTER", "SETSLOT", slot, "NODE", c.ids[to])
	}
}

// HalfMove moves the keys of a slot, which stays where it is: so a reshard that breaks
// off leaves it.
func (c *ClusterNodes) HalfMove(from, to *Server, slot int) {
	c.t.Helper()
	to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", c.ids[from])
	from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", c.ids[to])
	c.migrate(from, to, slot)
}

// MoveBack gives a HalfMove up, as redis-cli --cluster fix does.
func (c *ClusterNodes) MoveBack(from, to *Server, slot int) {
	c.t.Helper()
	from.Do("CLUSTER", "SETSLOT", slot, "STABLE")
	c.migrate(to, from, slot)
	to.Do("CLUSTER", "SETSLOT", slot, "STABLE")
}

// Forget stops a node without slots, for good: the others know it no more.
func (c *ClusterNodes) Forget(gone *Server) {
	c.t.Helper()
	gone.Stop()
	for _, s := range c.Servers {
		if s != gone && s.PID() != 0 {
			s.Do("CLUSTER", "FORGET", c.ids[gone])
		}
	}
}

// migrate moves the keys of a slot.
func (c *ClusterNodes) migrate(from, to *Server, slot int) {
	c.t.Helper()
	for {
		keys, err := from.Client.ClusterGetKeysInSlot(context.Background(), slot, 100).Result()
		if err != nil {
			c.t.Fatal(err)
		}
		if len(keys) == 0 {
			return
		}
		args := []any{"MIGRATE", to.Host(), to.Port(), "", 0, 10000, "KEYS"}
		for _, k := range keys {
			args = append(args, k)
		}
		from.Do(args...)
	}
}

// Watched is a master with replicas and Sentinels.
type Watched struct {
	t         testing.TB
	Master    *Server // the first one
	Replicas  []*Server
	Sentinels []*Server
}

// MasterName is what Sentinels call the master.
const MasterName = "disk"

// Sentinel starts a master, replicas and three Sentinels, and waits until they know
// each other. Then a master that is silent for a second is replaced; before, none is.
func Sentinel(t testing.TB, replicas int, opts ...Option) *Watched {
	t.Helper()
	w := &Watched{t: t}
	opts = append([]Option{TCP(), Args("--repl-diskless-sync-delay", "0")}, opts...)
	w.Master = Start(t, opts...)
	for range replicas {
		w.Replicas = append(w.Replicas, Start(t, append(opts, Args("--replicaof", "127.0.0.1 "+w.Master.Port()))...))
	}
	for _, s := range w.Replicas {
		Eventually(t, "a replica follows its master", func() bool { return s.Info("replication", "master_link_status") == "up" })
	}
	for range 3 {
		s := Start(t, TCP(), func(c *config) { c.sentinel = true })
		conf := fmt.Sprintf("sentinel monitor %s 127.0.0.1 %s 2\nsentinel down-after-milliseconds %s 3600000\nsentinel failover-timeout %s 10000\n",
			MasterName, w.Master.Port(), MasterName, MasterName)
		if err := os.WriteFile(filepath.Join(s.dir, "sentinel.conf"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		s.start()
		w.Sentinels = append(w.Sentinels, s)
	}
	for _, s := range w.Sentinels {
		Eventually(t, "the Sentinels know each other and the replicas", func() bool {
			text := s.Info("sentinel", "master0")
			return strings.Contains(text, fmt.Sprintf("slaves=%d,sentinels=3", replicas))
		})
	}
	w.Patience(time.Second)
	return w
}

// Patience sets for how long the master may be silent until it is replaced.
func (w *Watched) Patience(d time.Duration) {
	w.t.Helper()
	for _, s := range w.Sentinels {
		s.Do("SENTINEL", "SET", MasterName, "down-after-milliseconds", d.Milliseconds())
	}
}

// TakenOver says whether a replica is the master now.
func (w *Watched) TakenOver() bool {
	for _, s := range w.Replicas {
		if s.PID() != 0 && s.Info("replication", "role") == "master" {
			return true
		}
	}
	return false
}

// Addrs are the Sentinels' addresses.
func (w *Watched) Addrs() (out []string) {
	for _, s := range w.Sentinels {
		out = append(out, s.Addr())
	}
	return out
}

// URL names the master as --store takes it.
func (w *Watched) URL() string {
	return "redis+sentinel://" + MasterName + "@" + strings.Join(w.Addrs(), ",")
}
