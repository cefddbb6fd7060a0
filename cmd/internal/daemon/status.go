package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/volume"
	"github.com/kvbfs/kvbfs/losetup"
)

// Status is a daemon's account of itself.
type Status struct {
	Mount
	Version    string   `json:"version"`
	Durability string   `json:"durability"`
	Servers    []string `json:"servers"`
	// Unreachable are the servers that do not answer now; requests wait for them.
	Unreachable []ServerTrouble `json:"unreachable"`
	// Capacity and Used are the store's, in bytes; 0: not known.
	Capacity int64            `json:"capacity_bytes"`
	Used     int64            `json:"used_bytes"`
	Findings []FindingInfo    `json:"findings"`
	FS       fusefs.Status    `json:"fs"`
	Volumes  []OpenVolume     `json:"volumes"` // that are open
	Devices  []losetup.Device `json:"devices"` // loop devices on images of the mount
	Cache    *cache.Stats     `json:"cache,omitempty"`
	// WriteBack: a crash of the daemon loses what was not flushed.
	WriteBack *writeback.Stats `json:"write_back,omitempty"`
	Draining  string           `json:"draining,omitempty"`
}

// WaitsFor says what a mount waits for, as far as can be seen: what its end waits for,
// the servers that do not answer, else the oldest request. Empty: nothing.
func (s *Status) WaitsFor() string {
	var why []string
	if s.Draining != "" {
		why = append(why, s.Draining)
	}
	for _, u := range s.Unreachable {
		why = append(why, "no answer from "+u.Server)
	}
	if len(why) == 0 && len(s.FS.Waiting) > 0 {
		why = append(why, s.FS.Waiting[0].String())
	}
	return strings.Join(why, "; ")
}

// ServerTrouble says what is wrong with a server.
type ServerTrouble struct {
	Server string `json:"server"`
	Error  string `json:"error"`
}

// OpenVolume is a volume that the daemon has open.
type OpenVolume struct {
	Name      string          `json:"name"`
	Size      int64           `json:"size_bytes"`
	Allocated int64           `json:"allocated_bytes"`
	Writable  bool            `json:"writable"`
	Lease     string          `json:"lease"` // write, read (shared), lost, or none: stale
	Counters  volume.Counters `json:"counters"`
	// FlushFails says why every flush fails, if that is so.
	FlushFails string `json:"flush_fails,omitempty"`
	// Error says why there is no more to tell.
	Error string `json:"error,omitempty"`
}

// FindingInfo is a kvstore.Finding for scripts.
type FindingInfo struct {
	Server   string `json:"server"`
	Severity string `json:"severity"`
	What     string `json:"what"`
	Fix      string `json:"fix,omitempty"`
}

// Findings puts findings into their wire form.
func Findings(list []kvstore.Finding) []FindingInfo {
	out := []FindingInfo{}
	for _, f := range list {
		out = append(out, FindingInfo{f.Server, f.Severity.String(), f.What, f.Fix})
	}
	return out
}

// askTime bounds the look at the open volumes and at the servers: an open that
// waits for a dead server may hold what the look needs, and status must answer
// all the same.
const askTime = 500 * time.Millisecond

// status waits for the store for askTime at most, and never for a request.
func (s *server) status(ctx context.Context) Status {
	out := Status{
		Mount: s.mount, Version: s.cfg.Version, Durability: s.stack.Store.Properties().Durability.String(),
		Servers: s.stack.Store.Servers(), Findings: Findings(s.stack.Findings), FS: s.fs.Status(),
		Volumes: []OpenVolume{}, Devices: devicesOn(s.mount.Dir), Draining: s.draining(),
	}
	if s.stack.Cache != nil {
		st := s.stack.Cache.Stats()
		out.Cache = &st
	}
	if s.stack.WriteBack != nil {
		st := s.stack.WriteBack.Stats()
		out.WriteBack = &st
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	servers := s.askServers(ctx)
	seen := map[string]bool{}
	for _, o := range out.FS.Opened {
		if seen[o.Volume] {
			continue
		}
		seen[o.Volume] = true
		out.Volumes = append(out.Volumes, s.askVolume(ctx, o.Volume))
	}
	out.Unreachable = []ServerTrouble{}
	select {
	case store := <-servers:
		out.Unreachable, out.Capacity, out.Used = store.trouble, store.usage.Capacity, store.usage.Used
	case <-ctx.Done():
		for _, server := range out.Servers {
			out.Unreachable = append(out.Unreachable, ServerTrouble{server, "not answering"})
		}
	}
	return out
}

// storeState is what the servers say of themselves.
type storeState struct {
	trouble []ServerTrouble
	usage   kvstore.Usage
}

// pingTime is less than askTime, so that one silent server does not hide what the
// others say.
const pingTime = askTime * 3 / 5

// askServers asks beside the caller, since a store may take longer than ctx allows.
func (s *server) askServers(ctx context.Context) <-chan storeState {
	got := make(chan storeState, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		defer cancel()
		out := storeState{trouble: []ServerTrouble{}}
		servers := s.stack.Store.Servers()
		for i, err := range s.stack.Unreachable(ctx) {
			if err != nil {
				out.trouble = append(out.trouble, ServerTrouble{servers[i], err.Error()})
			}
		}
		if len(out.trouble) == 0 {
			// Without it the status is still worth telling.
			_ = s.contained("asking for the store's size", func() (err error) {
				out.usage, err = s.stack.Store.Usage(ctx)
				return err
			})
		}
		got <- out
	}()
	return got
}

func (s *server) askVolume(ctx context.Context, name string) OpenVolume {
	got := make(chan OpenVolume, 2)
	go func() {
		err := s.contained("looking at volume "+name, func() error {
			v, err := s.stack.Volumes.Open(ctx, name, false)
			if err != nil {
				return err
			}
			o := OpenVolume{Name: name, Size: v.Size(), Allocated: v.Allocated(), Writable: v.Writable(), Lease: v.LeaseState(), Counters: v.Counters()}
			if err := v.FlushFails(); err != nil {
				o.FlushFails = err.Error()
			}
			got <- o
			_ = v.Close(context.Background())
			return nil
		})
		if err != nil {
			got <- OpenVolume{Name: name, Error: err.Error()}
		}
	}()
	select {
	case v := <-got:
		return v
	case <-ctx.Done():
		return OpenVolume{Name: name, Error: "not answering"}
	}
}

// maxNames bounds the list of volumes in the banner.
const maxNames = 8

// banner tells a user what was mounted and how to go on.
func (s *server) banner(workers int, notes []string, took time.Duration) string {
	var b strings.Builder
	props := s.stack.Store.Properties()
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "kvbfs: %s serves %s\n", s.mount.Dir, s.stack.URL)
	line("store", "%s, from %s", s.stack.URL, s.cfg.URLSource)
	line("durability", "%s", durabilityWords(props.Durability))
	for i, server := range s.stack.Store.Servers() {
		if i < len(s.stack.RTT) {
			line("server", "%s, round trip %v", server, s.stack.RTT[i].Round(time.Microsecond))
		}
	}
	line("workers", "%d; ready in %v, process %d", workers, took.Round(time.Millisecond), s.mount.PID)
	s.bannerVolumes(line)
	for _, f := range s.stack.Findings {
		if f.Severity == kvstore.Info {
			continue
		}
		line("warning", "%s: %s", f.Server, f.What)
		if f.Fix != "" {
			line("", "fix: %s", f.Fix)
		}
	}
	if s.cfg.Stack.Stale {
		line("note", "--stale: what others write meanwhile is seen in part, or as I/O errors")
	}
	for _, n := range notes {
		line("note", "%s", n)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (s *server) bannerVolumes(line func(name, format string, args ...any)) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	list, err := s.stack.Volumes.List(ctx)
	only := s.cfg.FS.Only
	absent := slices.Clone(only)
	if len(only) > 0 {
		list = slices.DeleteFunc(list, func(v volume.Info) bool {
			absent = slices.DeleteFunc(absent, func(name string) bool { return name == v.Name })
			return !slices.Contains(only, v.Name)
		})
	}
	switch {
	case err != nil:
		line("volumes", "not known: %v", err)
	case len(list) == 0:
		line("volumes", "none yet")
	default:
		var names []string
		for i, v := range list {
			if i == maxNames {
				names = append(names, fmt.Sprintf("and %d more", len(list)-i))
				break
			}
			names = append(names, fmt.Sprintf("%s (%s)", v.Name, stack.FormatSize(v.Size)))
		}
		line("volumes", "%s", strings.Join(names, ", "))
	}
	if err == nil && len(absent) > 0 {
		line("warning", "--only %s: no such volume", strings.Join(absent, ","))
	}
	if s.cfg.FS.ReadOnly || len(only) > 0 {
		return
	}
	if strings.HasPrefix(s.mount.Dir, "/proc/") { // a connection whose mount is not to be seen from here
		line("next", "kvbfs volume create NAME --size 10G")
		return
	}
	line("next", "truncate -s 10G %s/NAME   or   kvbfs volume create NAME --size 10G", s.mount.Dir)
}

// durabilityWords say what a flush achieves.
func durabilityWords(d kvstore.Durability) string {
	switch d {
	case kvstore.Volatile:
		return "volatile: data survives a crash of kvbfs and of this machine, not the end of the store's server"
	case kvstore.Server:
		return "server: data survives the end of the store's server as far as its own log goes"
	}
	return "disk: flushed data survives what the local file system survives"
}
