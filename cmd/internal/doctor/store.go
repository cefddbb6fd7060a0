package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// slowStore is a round trip from which on a disk feels slow at queue depth 1.
const slowStore = 2 * time.Millisecond

// startLine is how a memcached for kvbfs is started that listens on where;
// docs/operation.md argues each flag.
func startLine(where string) string {
	line := "memcached -M -F -k -m MEGABYTES -t 4 -R 128 -c 4096 -o slab_sizes=96-192-4176-4240-8352,slab_automove=0"
	if os.Geteuid() == 0 { // it does not start as root without being told a user
		user := " -u nobody"
		if strings.HasPrefix(where, "-s ") {
			user = " -u root" // others may not make a socket where root does
		}
		line += user
	}
	return line + " " + where
}

// listenOn are the flags with which a memcached listens at an address of a store URL.
func listenOn(address string) string {
	if strings.HasPrefix(address, "/") {
		return "-s " + address + " -a 0600"
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "-l ADDRESS -p PORT"
	}
	return "-l " + host + " -p " + port
}

// redisLine is how a Redis for kvbfs is started; docs/stores.md argues each word.
const redisLine = "redis-server --maxmemory SIZE --maxmemory-policy noeviction --appendonly yes --appendfsync everysec --save ''"

// Store looks at a store: does it answer, how fast, does it know its pool, and
// are its settings safe. The error is about the URL itself (stack.ErrInput), or
// context.Canceled. log is told what it waits for.
func Store(ctx context.Context, url string, log func(format string, args ...any)) ([]Finding, error) {
	masked, err := stack.Canonical(url)
	if err != nil {
		return nil, err
	}
	r := report{area: "store"}
	s, err := stack.Open(ctx, stack.Config{URL: url, Dangerous: true, Log: log})
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		r.broken(masked, err)
		return r.list, nil
	}
	defer s.Close(context.WithoutCancel(ctx))
	for i, server := range s.Store.Servers() {
		what := fmt.Sprintf("%s answers in %v", server, s.RTT[i].Round(time.Microsecond))
		if s.RTT[i] > slowStore {
			r.add(Warn, what+": each small read waits so long", "a server nearer by, or on a faster network")
		} else {
			r.add(OK, what, "")
		}
	}
	r.add(Info, "durability: "+s.Store.Properties().Durability.String(), "")
	if s.Pool.Formatted() {
		id := s.Pool.UUID()
		r.add(OK, fmt.Sprintf("pool %x", id), "")
	} else {
		r.add(Info, "no pool yet: the first volume makes it", "")
	}
	r.inspected(s)
	if u, err := s.Store.Usage(ctx); err == nil && u.Capacity > 0 {
		r.usage(u)
	}
	return r.list, nil
}

// inspected adds what the store itself found.
func (r *report) inspected(s *stack.Stack) {
	bad := false
	for _, f := range s.Findings {
		level := map[kvstore.Severity]Level{kvstore.Info: Info, kvstore.Warn: Warn, kvstore.Refuse: Fail}[f.Severity]
		bad = bad || f.Severity != kvstore.Info
		r.add(level, f.Server+": "+f.What, f.Fix)
	}
	switch name := s.Store.Properties().Name; {
	case bad && name == "memcached":
		r.add(Info, "a memcached for kvbfs is started so", startLine(listenOn(s.Store.Servers()[0])))
	case bad && name == "redis":
		r.add(Info, "a Redis for kvbfs is started so", redisLine)
	}
}

// Fill levels in percent, as the daemon warns.
const (
	nearlyFull = 85
	full       = 95
)

func (r *report) usage(u kvstore.Usage) {
	percent := u.Used * 100 / u.Capacity
	what := fmt.Sprintf("%s of %s used (%d %%)", stack.FormatSize(u.Used), stack.FormatSize(u.Capacity), percent)
	switch {
	case percent >= full:
		r.add(Warn, what+": new blocks will soon be refused", "add memory or servers; fstrim and `kvbfs volume rm` free some")
	case percent >= nearlyFull:
		r.add(Warn, what, "plan for more")
	default:
		r.add(OK, what, "")
	}
}

// silent returns the address of the memcached that an error is about, else of the first
// one of the URL.
func silent(url string, err error) string {
	var op *kvstore.OpError
	if errors.As(err, &op) && op.Server != "" {
		return op.Server
	}
	if cfg, _, _, err := memcached.ParseURL(url); err == nil {
		return cfg.Servers[0]
	}
	return ""
}

// broken says why a store cannot be used.
func (r *report) broken(url string, err error) {
	// What stack adds for commands is for other readers, and may send them here: the
	// fix has its own place.
	hint := stack.Hint(err)
	what, fix := strings.TrimSuffix(err.Error(), hint), strings.TrimPrefix(hint, "; ")
	switch {
	case stack.Distrust(err) != "": // the hint says it
	case errors.Is(err, kvstore.ErrUnreachable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, kvstore.ErrTimeout):
		fix = "start the server, or correct the address"
		if strings.HasPrefix(url, "memcached+unix://") || strings.HasPrefix(url, "memcached://") {
			fix = startLine(listenOn(silent(url, err)))
		} else if socket, ok := strings.CutPrefix(url, "redis+unix://"); ok {
			path, _, _ := strings.Cut(socket, "?")
			fix = redisLine + " --port 0 --unixsocket " + path
		} else if strings.HasPrefix(url, "redis://") {
			fix = redisLine + " --bind ADDRESS --port PORT"
		}
	case errors.Is(err, pool.ErrForgotten), errors.Is(err, kvstore.ErrServerLost):
		fix = "restore the server's data, or accept the loss: kvbfs pool forget " + url
	}
	r.add(Fail, what, fix)
}
