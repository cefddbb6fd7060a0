// Package result is what a benchmark found, as data: samples, their medians, the
// bounds that follow from them, and tables of them. It measures nothing and reads
// nothing, so that a committed file of results can be drawn anew at any time.
//
// # The nouns
//
//   - A sample is one run: rates, latencies, CPU time, and how much of the
//     machine's time the host stole meanwhile.
//   - A row is one thing that was measured, with a sample per round. Its identity
//     is subject, transport, place and work.
//   - The subject is whose speed it is: the raw store, the null store, kvbfs, or a
//     peer. The place is where the load met it: file, loop, ext4, xfs.
//   - The work is what fio (or the raw client) did.
//   - The bound of a row is what it could reach at best if the time of FUSE and
//     the time of the store add up, both measured in the same run.
//   - A check is a row of its own kind: one figure with a limit.
//   - A curve is one work along one axis (depth, jobs, servers ...).
package result

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Subjects that are always there; peers have names of their own.
const (
	Raw            = "raw"
	Null           = "null"
	Kvbfs          = "kvbfs"
	Gomemcache     = "gomemcache"
	RedisBenchmark = "redis-benchmark"
)

// Subjects are those that no peer may be called.
var Subjects = []string{Raw, Null, Kvbfs, Gomemcache, RedisBenchmark}

// Places.
const (
	File   = "file"
	Loop   = "loop"
	Ext4   = "ext4"
	XFS    = "xfs"
	Device = "device" // a block device that was named
)

// blockBytes is the size of a block of the store.
const blockBytes = 4096

// MaxSteal is the share of the machine's time in percent that the host may take
// during a run before the run says more about the host than about us.
const MaxSteal = 2.0

// Report is a whole run of the benchmark.
type Report struct {
	Made     time.Time `json:"made"`
	Version  string    `json:"version"`
	Machine  Machine   `json:"machine"`
	Settings Settings  `json:"settings"`
	Rows     []Row     `json:"rows"`
	Checks   []Check   `json:"checks"`
	Curves   []Curve   `json:"curves"`
	Skipped  []string  `json:"skipped"` // what was left out, each with its reason
}

// Machine is where it ran.
type Machine struct {
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	Memory    int64  `json:"memory_bytes"`
	Fio       string `json:"fio"`
	Memcached string `json:"memcached"`
}

// Settings are how it ran.
type Settings struct {
	Rounds  int    `json:"rounds"`
	Seconds int    `json:"seconds"` // of each run
	Size    int64  `json:"size_bytes"`
	Store   string `json:"store"` // masked URL
	Quick   bool   `json:"quick,omitempty"`
}

// Work is what was done.
type Work struct {
	// Kind is fio's word (randread, randwrite, read, write, randrw), or get and set
	// of a store's client.
	Kind  string `json:"kind"`
	Block int64  `json:"block_bytes"`
	Depth int    `json:"depth"` // in flight per job
	Jobs  int    `json:"jobs"`
	// Run is how many consecutive blocks an operation of the raw client's batch
	// covers; 0: single blocks anywhere.
	Run int `json:"run,omitempty"`
}

// Name spells a work in one word: randread-4k-qd32x2.
func (w Work) Name() string {
	if w.Run > 0 {
		return fmt.Sprintf("%s-run%dx%d", w.Kind, w.Run, w.Jobs)
	}
	return fmt.Sprintf("%s-%s-qd%dx%d", w.Kind, sizeName(w.Block), w.Depth, w.Jobs)
}

// sizeName spells a block size as fio takes it.
func sizeName(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dm", n>>20)
	case n%1024 == 0:
		return fmt.Sprintf("%dk", n>>10)
	}
	return fmt.Sprint(n)
}

// Title spells a work for people.
func (w Work) Title() string {
	size := strings.NewReplacer("k", " KiB", "m", " MiB").Replace(sizeName(w.Block))
	kind := map[string]string{
		"randread": "random read", "randwrite": "random write", "read": "sequential read",
		"write": "sequential write", "randrw": "random 70 % read, 30 % write", "get": "GET", "set": "SET",
	}[w.Kind]
	if w.Run > 0 {
		return fmt.Sprintf("%s, runs of %d blocks, %d workers", kind, w.Run, w.Jobs)
	}
	at := fmt.Sprintf("QD%d", w.Depth)
	if w.Jobs > 1 {
		at += fmt.Sprintf(" x %d", w.Jobs)
	}
	return fmt.Sprintf("%s %s, %s", size, kind, at)
}

// reads is the share of reads in a work.
func (w Work) reads() float64 {
	switch w.Kind {
	case "randread", "read", "get":
		return 1
	case "randrw":
		return 0.7
	}
	return 0
}

// Sample is one run. Latencies of a mixture are those of its reads.
type Sample struct {
	IOPS   float64 `json:"iops"`
	Bytes  float64 `json:"bytes_per_s"`
	MeanUS float64 `json:"mean_us"`
	P50US  float64 `json:"p50_us"`
	P99US  float64 `json:"p99_us"`
	P999US float64 `json:"p999_us"`
	// CPUUS is the busy time of all CPUs per I/O: load generator, kernel, kvbfs and
	// servers together. DaemonUS is kvbfs's own part of it.
	CPUUS    float64 `json:"cpu_us_per_io"`
	DaemonUS float64 `json:"daemon_cpu_us_per_io"`
	Steal    float64 `json:"steal_percent"`
}

// Quiet says whether the host left the machine to us.
func (s Sample) Quiet() bool { return s.Steal <= MaxSteal }

// Row is one thing that was measured.
type Row struct {
	Subject   string `json:"subject"`
	Transport string `json:"transport,omitempty"` // dev, uring
	Place     string `json:"place,omitempty"`
	Work      Work   `json:"work"`
	// Beside is the work next to which a row of the raw store was measured in each
	// round, for its bound; such a row is shown nowhere. Nil: a row for itself.
	Beside  *Work    `json:"beside,omitempty"`
	Samples []Sample `json:"samples"` // one per round, in their order
	Median  Sample   `json:"median"`
	Noisy   bool     `json:"noisy,omitempty"` // the median is not of quiet runs
}

// ID names a row in one word, for --only and messages.
func (r Row) ID() string {
	var parts []string
	for _, p := range []string{r.Subject, r.Transport, r.Place, r.Work.Name()} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	id := strings.Join(parts, "/")
	if r.Beside != nil {
		id += " beside " + r.Beside.Name()
	}
	return id
}

// Settle computes the median of the samples: of the quiet ones if at least half
// of them are, else of all, and the row is marked.
func (r *Row) Settle() { r.Median, r.Noisy = Settle(r.Samples) }

// Settle returns the median of the quiet samples, or of all and noisy.
func Settle(all []Sample) (median Sample, noisy bool) {
	var quiet []Sample
	for _, s := range all {
		if s.Quiet() {
			quiet = append(quiet, s)
		}
	}
	if 2*len(quiet) < len(all) || len(quiet) == 0 {
		return Median(all), len(all) > 0
	}
	return Median(quiet), false
}

// Median takes the median of each figure by itself; the zero Sample of none.
func Median(all []Sample) Sample {
	of := func(get func(Sample) float64) float64 {
		var v []float64
		for _, s := range all {
			v = append(v, get(s))
		}
		return Middle(v)
	}
	return Sample{
		IOPS:     of(func(s Sample) float64 { return s.IOPS }),
		Bytes:    of(func(s Sample) float64 { return s.Bytes }),
		MeanUS:   of(func(s Sample) float64 { return s.MeanUS }),
		P50US:    of(func(s Sample) float64 { return s.P50US }),
		P99US:    of(func(s Sample) float64 { return s.P99US }),
		P999US:   of(func(s Sample) float64 { return s.P999US }),
		CPUUS:    of(func(s Sample) float64 { return s.CPUUS }),
		DaemonUS: of(func(s Sample) float64 { return s.DaemonUS }),
		Steal:    of(func(s Sample) float64 { return s.Steal }),
	}
}

// Middle is the median of values, the mean of the two in the middle for an even
// number of them, 0 for none. It leaves v as it is.
func Middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Check is one figure with a limit.
type Check struct {
	Name      string  `json:"name"`
	What      string  `json:"what"`
	Transport string  `json:"transport,omitempty"`
	Place     string  `json:"place,omitempty"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Limit     float64 `json:"limit"`              // 0: none, to compare others with
	AtLeast   bool    `json:"at_least,omitempty"` // the limit is a lower one
	Parts     []Part  `json:"parts,omitempty"`
	Noisy     bool    `json:"noisy,omitempty"`
}

// Part is one of the figures that a check is made of.
type Part struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Holds says whether the value keeps to its limit.
func (c Check) Holds() bool {
	if c.AtLeast {
		return c.Value >= c.Limit
	}
	return c.Value <= c.Limit
}

// Curve is one work along one axis.
type Curve struct {
	Axis      string  `json:"axis"`
	Transport string  `json:"transport"`
	Place     string  `json:"place"`
	Kind      string  `json:"kind"` // of the work
	Points    []Point `json:"points"`
}

// Point is one value on the axis.
type Point struct {
	X       float64  `json:"x"`
	Label   string   `json:"label"`
	Samples []Sample `json:"samples"`
	Median  Sample   `json:"median"`
	Noisy   bool     `json:"noisy,omitempty"`
}
