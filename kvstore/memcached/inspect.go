package memcached

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

// startLine is how a memcached for kvbfs is started; megs is its -m.
func startLine(megs int64) string {
	return fmt.Sprintf("memcached -M -F -k -m %d -t 4 -R 128 -c 4096 -o slab_sizes=96-192-4176-4240-8352,slab_automove=0", megs)
}

// Inspect implements kvstore.Store: settings of each server that endanger data
// or waste room or speed, and how full it is.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) {
	var all []kvstore.Finding
	for _, srv := range s.servers {
		f, err := srv.inspect(ctx)
		if err != nil {
			return all, err
		}
		all = append(all, f...)
	}
	return all, nil
}

func (s *server) inspect(ctx context.Context) ([]kvstore.Finding, error) {
	general, err := s.stats(ctx, "")
	if err != nil {
		return nil, err
	}
	settings, err := s.stats(ctx, "settings")
	if err != nil {
		return nil, err
	}
	slabs, err := s.stats(ctx, "slabs")
	if err != nil {
		return nil, err
	}
	usage, err := s.usage(ctx)
	if err != nil {
		return nil, err
	}
	r := &report{server: s.addr, start: "restart it empty as: " + startLine(max(settings.number("maxbytes")>>20, 64))}
	r.dangers(general, settings)
	r.wastes(slabs)
	r.limits(settings, s.store.cfg.Connections)
	r.fill(usage)
	r.add(kvstore.Info, fmt.Sprintf("memcached %s, %d MiB for items, %s threads",
		general["version"], settings.number("maxbytes")>>20, settings["num_threads"]), "")
	return r.findings, nil
}

// report collects what was found on one server.
type report struct {
	server   string
	start    string
	findings []kvstore.Finding
}

func (r *report) add(sev kvstore.Severity, what, fix string) {
	r.findings = append(r.findings, kvstore.Finding{Server: r.server, Severity: sev, What: what, Fix: fix})
}

// dangers are settings by which a server drops data that it acknowledged.
func (r *report) dangers(general, settings stats) {
	if settings["evictions"] != "off" {
		r.add(kvstore.Refuse, "evictions are on: when full, the server silently drops blocks", "add -M; "+r.start)
	}
	for name := range general {
		if strings.HasPrefix(name, "extstore_") {
			r.add(kvstore.Refuse, "extstore is on: it drops acknowledged items, also with -M", "leave ext_path away; "+r.start)
			break
		}
	}
	if mode := settings["slab_automove"]; mode != "0" {
		r.add(kvstore.Refuse, fmt.Sprintf("slab_automove is %s: moving memory between item sizes may evict blocks, also with -M", mode),
			"echo 'slabs automove 0' to the server, or -o slab_automove=0; "+r.start)
	}
	if n := settings.number("item_size_max"); n < itemSize {
		r.add(kvstore.Refuse, fmt.Sprintf("the largest item is %d bytes: a block takes %d", n, itemSize), "drop -I or use -I 1m; "+r.start)
	} else if n < pageSize {
		r.add(kvstore.Warn, fmt.Sprintf("the largest item is %d bytes: large control records may not fit", n), "use -I 1m; "+r.start)
	}
	if settings["cas_enabled"] == "no" {
		r.add(kvstore.Refuse, "compare-and-swap is off (-C): leases and the catalogue need it", "drop -C; "+r.start)
	}
	if settings["flush_enabled"] == "yes" {
		r.add(kvstore.Warn, "flush_all is allowed: any client can drop all data with it", "add -F; "+r.start)
	}
}

// wastes looks at the slab class of the blocks, which is known once there is one
// (or ballast).
func (r *report) wastes(slabs stats) {
	c := blockClass(slabs)
	if c.chunk == 0 {
		return
	}
	// 4240 is the next class of the recommended line.
	if waste := (c.chunk - itemSize) * 100 / c.chunk; c.chunk > 4240 {
		r.add(kvstore.Warn, fmt.Sprintf("slab chunks of %d bytes hold blocks of %d: %d %% of the memory is wasted", c.chunk, itemSize, waste),
			"set -o slab_sizes=96-192-4176-4240-8352; "+r.start)
	}
}

func (r *report) limits(settings stats, perChannel int) {
	// A channel per CPU (the rings) or up to 16 handlers, and some for control.
	need := int64(max(runtime.NumCPU(), 16)*perChannel + 32)
	if n := settings.number("maxconns"); n > 0 && n < need {
		r.add(kvstore.Warn, fmt.Sprintf("at most %d connections are allowed: this machine alone may want %d", n, need), "use -c 4096; "+r.start)
	}
}

func (r *report) fill(u kvstore.Usage) {
	if u.Capacity <= 0 {
		return
	}
	percent := u.Used * 100 / u.Capacity
	fix := "delete volumes or files and run fstrim, or give the server more memory (-m)"
	switch {
	case percent >= 95:
		r.add(kvstore.Warn, fmt.Sprintf("%d %% full: writes of new blocks will soon fail with ENOSPC", percent), fix)
	case percent >= 85:
		r.add(kvstore.Warn, fmt.Sprintf("%d %% full", percent), fix)
	}
}
