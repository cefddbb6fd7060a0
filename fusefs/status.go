package fusefs

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Status is what the mount is doing now.
type Status struct {
	Dir      string `json:"dir"`
	Requests uint64 `json:"requests"`
	InFlight int    `json:"in_flight"`
	OldestMS int64  `json:"oldest_request_ms"`
	// Waiting are the oldest requests that take longer than they should.
	Waiting []Waiting `json:"waiting"`
	Opened  []Opened  `json:"opened"` // image files that are open
	Batches uint64    `json:"batches"`
	Workers int       `json:"workers"`
	// Transport is "uring" or "dev".
	Transport Transport `json:"transport"`
}

// maxWaiting bounds what Status says of requests in flight.
const maxWaiting = 8

// Opened is an image file that somebody has open.
type Opened struct {
	Volume string `json:"volume"`
	Count  int    `json:"count"`
	Write  bool   `json:"write"`
	PIDs   []int  `json:"pids"` // that opened it; they may have gone since
}

// Status may be called at any time; it never waits for a request.
func (s *Server) Status() Status {
	st, _ := s.status()
	return st
}

func (s *Server) status() (Status, map[string]*opStats) {
	ops, requests, batches, lanes := s.disp.sum()
	n, oldest := s.disp.flying.look()
	return Status{
		Dir: s.dir, Requests: requests + s.tree.others.Load(), InFlight: n, OldestMS: oldest.Milliseconds(),
		Waiting: s.disp.flying.oldest(maxWaiting, stuckAfter), Opened: s.tree.opened(), Batches: batches, Workers: lanes,
		Transport: s.Transport(),
	}, ops
}

// opened groups the handles by volume.
func (t *tree) opened() []Opened {
	opened := []Opened{} // not null in JSON
	for _, h := range *t.handles.Load() {
		if h == nil || h.n == nil {
			continue
		}
		i := slices.IndexFunc(opened, func(o Opened) bool { return o.Volume == h.n.name })
		if i < 0 {
			i = len(opened)
			opened = append(opened, Opened{Volume: h.n.name})
		}
		o := &opened[i]
		o.Count++
		o.Write = o.Write || h.write
		if !slices.Contains(o.PIDs, int(h.pid)) {
			o.PIDs = append(o.PIDs, int(h.pid))
		}
	}
	slices.SortFunc(opened, func(a, b Opened) int { return strings.Compare(a.Volume, b.Volume) })
	return opened
}

// report is the content of .stats.
type report struct {
	Status
	AverageBatch float64                    `json:"average_batch"`
	Operations   map[string]*opStats        `json:"operations"`
	Volumes      map[string]volume.Counters `json:"volumes"` // that are open
	Cache        any                        `json:"cache,omitempty"`
	WriteBack    any                        `json:"write_back,omitempty"`
}

// StatsJSON renders all counters: what .stats holds unless Options.Stats does.
func (s *Server) StatsJSON() []byte {
	st, ops := s.status()
	r := report{Status: st, Operations: ops, Volumes: make(map[string]volume.Counters)}
	if s.opt.Cache != nil {
		r.Cache = s.opt.Cache()
	}
	if s.opt.WriteBack != nil {
		r.WriteBack = s.opt.WriteBack()
	}
	var data uint64
	for _, o := range ops {
		data += o.Requests
	}
	if st.Batches > 0 {
		r.AverageBatch = float64(data) / float64(st.Batches)
	}
	for _, h := range *s.tree.handles.Load() {
		if h == nil || h.n == nil {
			continue
		}
		if v := h.vol.Load(); v != nil {
			r.Volumes[h.n.name] = v.Counters()
		}
	}
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil { // no value of report can cause it
		return []byte("{}\n")
	}
	return append(out, '\n')
}

func (s *Server) statsContent() []byte {
	if s.opt.Stats != nil {
		return s.opt.Stats()
	}
	return s.StatsJSON()
}
