package redis

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
)

// facts are what one node tells of itself: INFO and some of CONFIG.
type facts struct {
	info   map[string]string
	config map[string]string // empty where CONFIG is forbidden
}

func (f *facts) number(name string) int64 {
	n, _ := strconv.ParseInt(f.info[name], 10, 64)
	return n
}

// version of Redis as major*100 + minor: 702.
func (f *facts) version() int {
	text := f.info["redis_version"]
	if v := f.info["valkey_version"]; v != "" && f.info["server_name"] == "valkey" {
		return 702 // all versions of Valkey know what Redis 7.2 knows
	}
	major, rest, _ := strings.Cut(text, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a*100 + b
}

// log is how durable the node's own log makes what it acknowledges.
func (f *facts) log() kvstore.Durability {
	switch {
	case f.info["aof_enabled"] != "1":
		return kvstore.Volatile
	case f.config["appendfsync"] == "always":
		return kvstore.Disk
	}
	return kvstore.Server
}

// facts asks a node.
func (n *node) facts(ctx context.Context) (*facts, error) {
	f := &facts{info: map[string]string{}, config: map[string]string{}}
	text, err := n.admin.Info(ctx).Result()
	if err != nil {
		return nil, &kvstore.OpError{Op: "ask for settings", Server: n.addr, Err: controlError(err)}
	}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			f.info[name] = value
		}
	}
	for _, name := range []string{"appendfsync", "no-appendfsync-on-rewrite", "maxclients", "aof-load-truncated"} {
		m, err := n.admin.ConfigGet(ctx, name).Result()
		var said goredis.Error
		if err != nil && !errors.As(err, &said) {
			return nil, &kvstore.OpError{Op: "ask for settings", Server: n.addr, Err: controlError(err)}
		}
		f.config[name] = m[name]
	}
	return f, nil
}

// masters are the nodes that hold blocks now.
func (s *Store) masters() (out []*node) {
	for _, n := range *s.nodes.Load() {
		if n.serves() {
			out = append(out, n)
		}
	}
	return out
}

// lookDurability asks all masters what a flush achieves, and refuses what cannot
// be: the least durable one counts.
func (s *Store) lookDurability(ctx context.Context) (kvstore.Durability, error) {
	least := kvstore.Disk
	for _, n := range s.masters() {
		f, err := n.facts(ctx)
		if err != nil {
			return least, err
		}
		d := f.log()
		switch {
		case s.cfg.WaitAOF && f.version() < 702:
			return least, fmt.Errorf("%w: --wait-aof: redis %s is version %s, WAITAOF came with 7.2", kvstore.ErrUnsupported, n.addr, f.info["redis_version"])
		case s.cfg.WaitAOF && d == kvstore.Volatile:
			return least, fmt.Errorf("%w: --wait-aof: redis %s has no append-only file: redis-cli config set appendonly yes", kvstore.ErrUnsupported, n.addr)
		case s.cfg.WaitAOF:
			d = kvstore.Disk
		case s.cfg.WaitReplicas > 0:
			d = max(d, kvstore.Server)
		}
		if r := f.number("connected_slaves"); r < int64(s.cfg.WaitReplicas) {
			return least, fmt.Errorf("%w: --wait-replicas %d: redis %s has %d replicas", kvstore.ErrUnsupported, s.cfg.WaitReplicas, n.addr, r)
		}
		least = min(least, d)
	}
	return least, nil
}

// Inspect implements kvstore.Store: settings of each master that endanger data or
// waste speed, and how full it is.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) {
	var all []kvstore.Finding
	for _, n := range s.masters() {
		f, err := n.facts(ctx)
		if err != nil {
			return all, err
		}
		r := &report{server: n.addr, facts: f}
		r.dangers(s.cfg.Mode)
		r.durability(&s.cfg)
		r.limits(s.cfg.Connections)
		all = append(all, r.findings...)
	}
	return all, nil
}

// report collects what was found on one node.
type report struct {
	server   string
	facts    *facts
	findings []kvstore.Finding
}

func (r *report) add(sev kvstore.Severity, what, fix string) {
	r.findings = append(r.findings, kvstore.Finding{Server: r.server, Severity: sev, What: what, Fix: fix})
}

// dangers are settings by which a server drops data that it acknowledged.
func (r *report) dangers(mode Mode) {
	if policy := r.facts.info["maxmemory_policy"]; policy != "noeviction" {
		r.add(kvstore.Refuse, fmt.Sprintf("maxmemory-policy is %s: when full, the server silently drops blocks", policy),
			"redis-cli config set maxmemory-policy noeviction, and the same in redis.conf")
	}
	if v := r.facts.version(); v < 700 {
		r.add(kvstore.Refuse, fmt.Sprintf("version %s: a full server could not be overwritten, so file systems on it break", r.facts.info["redis_version"]),
			"use Redis 7.0 or newer, or Valkey")
	}
	if mode == Direct && r.facts.info["cluster_enabled"] == "1" {
		r.add(kvstore.Refuse, "it is a node of a Redis Cluster, which has its blocks elsewhere", "write redis+cluster:// in the URL")
	}
	if mode == Direct && r.facts.info["role"] != "master" {
		r.add(kvstore.Refuse, "it is a replica: it takes no writes", "name its master, or use redis+sentinel://")
	}
}

// durability tells what survives what.
func (r *report) durability(cfg *Config) {
	replicas := r.facts.number("connected_slaves")
	what := fmt.Sprintf("redis %s, ", r.facts.info["redis_version"])
	if v := r.facts.info["valkey_version"]; v != "" {
		what = fmt.Sprintf("valkey %s, ", v)
	}
	switch log := r.facts.config["appendfsync"]; {
	case r.facts.info["aof_enabled"] != "1":
		what += "no append-only file"
	case log == "":
		what += "append-only file (its fsync policy cannot be read)"
	default:
		what += "append-only file, fsync " + log
	}
	r.add(kvstore.Info, fmt.Sprintf("%s, %d replicas", what, replicas), "")
	if r.facts.info["aof_enabled"] != "1" && replicas == 0 {
		r.add(kvstore.Warn, "no append-only file and no replica: all data is gone when the server ends",
			"redis-cli config set appendonly yes, and the same in redis.conf")
	}
	if r.facts.config["no-appendfsync-on-rewrite"] == "yes" {
		r.add(kvstore.Warn, "no-appendfsync-on-rewrite is on: while the file is rewritten, nothing is made stable", "redis-cli config set no-appendfsync-on-rewrite no")
	}
	if replicas > 0 && cfg.WaitReplicas == 0 {
		r.add(kvstore.Info, "replication is asynchronous: what was written last may be lost in a failover", "--wait-replicas 1 lets each flush wait for a replica")
	}
}

func (r *report) limits(perChannel int) {
	// A channel per CPU (the rings) or up to 16 handlers, and some for control.
	need := int64(max(runtime.NumCPU(), 16)*perChannel + 32)
	if n, _ := strconv.ParseInt(r.facts.config["maxclients"], 10, 64); n > 0 && n < need {
		r.add(kvstore.Warn, fmt.Sprintf("at most %d clients are allowed: this machine alone may want %d", n, need), "redis-cli config set maxclients 10000")
	}
	limit := r.facts.number("maxmemory")
	if limit == 0 {
		r.add(kvstore.Warn, "maxmemory is not set: the server grows until the kernel kills it", "redis-cli config set maxmemory 4gb, and the same in redis.conf")
		return
	}
	fix := "delete volumes or files and run fstrim, or give the server more memory (maxmemory)"
	switch percent := r.facts.number("used_memory") * 100 / limit; {
	case percent >= 95:
		r.add(kvstore.Warn, fmt.Sprintf("%d %% full: writes of new blocks will soon fail with ENOSPC", percent), fix)
	case percent >= 85:
		r.add(kvstore.Warn, fmt.Sprintf("%d %% full", percent), fix)
	}
}

// Usage implements kvstore.Store. A server without maxmemory counts as large as its
// machine.
func (s *Store) Usage(ctx context.Context) (sum kvstore.Usage, err error) {
	sum.Blocks = -1
	for _, n := range s.masters() {
		f, err := n.facts(ctx)
		if err != nil {
			return kvstore.Usage{}, err
		}
		limit := f.number("maxmemory")
		if limit == 0 {
			limit = f.number("total_system_memory")
		}
		sum.Capacity += limit / itemSize * kvstore.BlockSize
		sum.Used += min(f.number("used_memory"), limit) / itemSize * kvstore.BlockSize
	}
	return sum, nil
}

// Locate implements kvstore.Store.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	number := 0
	if p := s.place.Load(); p != nil {
		number = (*p).Server(k)
	}
	var raw [kvstore.KeySize]byte
	k.Put(raw[:])
	loc := kvstore.Location{Key: fmt.Sprintf("%x", raw)}
	if number < 0 || number >= len(s.servers) {
		return loc
	}
	n := s.route(raw[:], number)
	loc.Server = n.addr
	quoted := ""
	for _, b := range raw {
		quoted += fmt.Sprintf(`\x%02x`, b)
	}
	where := "-s " + shellQuote(n.addr)
	if n.where.Network == "tcp" {
		i := strings.LastIndexByte(n.addr, ':')
		where = "-h " + shellQuote(strings.Trim(n.addr[:i], "[]")) + " -p " + n.addr[i+1:]
	}
	if s.cfg.TLS != nil {
		where += " --tls"
	}
	if s.cfg.User != "" {
		where += " --user " + shellQuote(s.cfg.User) // the password: REDISCLI_AUTH
	}
	if s.cfg.DB != 0 {
		where += " -n " + strconv.Itoa(s.cfg.DB)
	}
	loc.Command = fmt.Sprintf(`redis-cli %s --quoted-input --raw GET '"%s"'`, where, quoted)
	return loc
}

// shellQuote quotes where a shell would not take the word as it is.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/.:_-,@", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
