package result

import (
	"fmt"
	"slices"
	"strings"
)

// Tables are all that the report has to show.
func (r *Report) Tables() []Table {
	all := []Table{r.RawTable()}
	for _, t := range r.Transports() {
		all = append(all, r.KvbfsTable(t))
	}
	all = append(all, r.LatencyTable(), r.TransportTable(), r.PeerTable(), r.CheckTable(), r.GoalTable())
	all = append(all, r.CurveTables()...)
	return slices.DeleteFunc(all, func(t Table) bool { return len(t.Rows) == 0 })
}

// RawTable shows the store alone.
func (r *Report) RawTable() Table {
	t := Table{Title: "The store alone", Head: []string{"client", "ops/s", "MB/s", "p50 us", "p99 us", "p99.9 us"}}
	noisy := false
	for _, row := range r.Rows {
		var name string
		if row.Beside != nil {
			continue
		}
		switch row.Subject {
		case Raw:
			name = row.Work.Title()
		case Gomemcache:
			name = "gomemcache, " + row.Work.Title()
		case RedisBenchmark:
			name = "redis-benchmark, " + row.Work.Title()
		default:
			continue
		}
		m := row.Median
		noisy = noisy || row.Noisy
		t.Rows = append(t.Rows, []string{name + mark(row.Noisy), Thousands(m.IOPS), Thousands(m.Bytes / 1e6), micros(m.P50US), micros(m.P99US), micros(m.P999US)})
	}
	t.Note = strings.TrimSpace("Latencies are those of a batch. " + noisyNote(noisy))
	return t
}

// KvbfsTable shows kvbfs over one transport beside its limits.
func (r *Report) KvbfsTable(transport string) Table {
	t := Table{Title: "kvbfs over " + TransportTitle(transport),
		Head: []string{"", "FUSE alone", "kvbfs", "bound", "efficiency", "p50 us", "p99 us", "p99.9 us", "CPU us per I/O", "of it kvbfs"}}
	noisy := false
	for _, place := range Places {
		for _, w := range r.WorksAt(place, Kvbfs) {
			row := r.Find(Kvbfs, transport, place, w)
			if row == nil {
				continue
			}
			alone := "-"
			if null := r.Find(Null, transport, place, w); null != nil {
				alone = rate(w, null.Median)
			}
			bound, ok := r.Bound(*row)
			limit := "-"
			if ok {
				limit = rateOf(w, bound)
			}
			eff, eok := r.Efficiency(*row)
			m := row.Median
			noisy = noisy || row.Noisy
			t.Rows = append(t.Rows, []string{place + ", " + w.Title() + mark(row.Noisy), alone, rate(w, m), limit, ratio(eff, eok),
				micros(m.P50US), micros(m.P99US), micros(m.P999US), micros(m.CPUUS), micros(m.DaemonUS)})
		}
	}
	t.Note = noisyNote(noisy)
	return t
}

// LatencyTable shows single requests beside the store's own round trip.
func (r *Report) LatencyTable() Table {
	t := Table{Title: "One request at a time, mean in us", Head: []string{"", "store's round trip", "FUSE alone", "sum", "kvbfs", "kvbfs / sum"}}
	for _, transport := range r.Transports() {
		for _, place := range Places {
			for _, w := range r.WorksAt(place, Kvbfs) {
				if w.Depth != 1 || w.Jobs != 1 || w.Block != blockBytes {
					continue
				}
				kind := map[string]string{"randread": "get", "randwrite": "set"}[w.Kind]
				row := r.Find(Kvbfs, transport, place, w)
				raw := r.Find(Raw, "", "", Work{Kind: kind, Block: blockBytes, Depth: 1, Jobs: 1})
				if row == nil || raw == nil {
					continue
				}
				cells := []string{place + " over " + TransportTitle(transport) + ", " + w.Title(), micros(raw.Median.MeanUS), "-", "-", micros(row.Median.MeanUS), "-"}
				if null := r.Find(Null, transport, place, w); null != nil {
					sum := raw.Median.MeanUS + null.Median.MeanUS
					cells[2], cells[3], cells[5] = micros(null.Median.MeanUS), micros(sum), ratio(row.Median.MeanUS/sum, sum > 0)
				}
				t.Rows = append(t.Rows, cells)
			}
		}
	}
	return t
}

// TransportTable compares the two transports.
func (r *Report) TransportTable() Table {
	t := Table{Title: "io_uring beside /dev/fuse", Head: []string{"", "/dev/fuse", "io_uring", "ratio"}}
	for _, place := range Places {
		for _, w := range r.WorksAt(place, Kvbfs) {
			d, u := r.Find(Kvbfs, "dev", place, w), r.Find(Kvbfs, "uring", place, w)
			if d == nil || u == nil || d.Median.IOPS == 0 {
				continue
			}
			t.Rows = append(t.Rows, []string{place + ", " + w.Title() + mark(d.Noisy || u.Noisy), rate(w, d.Median), rate(w, u.Median), ratio(u.Median.IOPS/d.Median.IOPS, true)})
		}
	}
	return t
}

// PeerTable compares kvbfs over each transport with each peer: their rate, and
// what kvbfs reaches of it.
func (r *Report) PeerTable() Table {
	peers, transports := r.Peers(), r.Transports()
	t := Table{Title: "Beside others", Head: []string{""}}
	for _, tr := range transports {
		t.Head = append(t.Head, "kvbfs, "+TransportTitle(tr))
	}
	for _, p := range peers {
		t.Head = append(t.Head, p+" (ratio)")
	}
	if len(peers) == 0 {
		return t
	}
	noisy := false
	for _, place := range Places {
		for _, w := range r.WorksAt(place, Kvbfs) {
			cells := []string{place + ", " + w.Title()}
			var ours []float64
			for _, tr := range transports {
				row := r.Find(Kvbfs, tr, place, w)
				if row == nil {
					row = &Row{}
				}
				ours = append(ours, row.Median.IOPS)
				noisy = noisy || row.Noisy
				cells = append(cells, rate(w, row.Median)+mark(row.Noisy))
			}
			for _, p := range peers {
				row := r.Find(p, "", place, w)
				if row == nil || row.Median.IOPS == 0 {
					cells = append(cells, "-")
					continue
				}
				cell := rate(w, row.Median) + mark(row.Noisy) + " ("
				for i, v := range ours {
					if i > 0 {
						cell += ", "
					}
					cell += ratio(v/row.Median.IOPS, true)
				}
				noisy = noisy || row.Noisy
				cells = append(cells, cell+")")
			}
			t.Rows = append(t.Rows, cells)
		}
	}
	t.Note = strings.TrimSpace("In brackets: how many times as much kvbfs reaches, in the order of its columns. " + noisyNote(noisy))
	return t
}

// CheckTable shows single figures and their limits.
func (r *Report) CheckTable() Table {
	t := Table{Title: "Checks", Head: []string{"", "value", "limit", "holds", "made of"}}
	for _, c := range r.Checks {
		where := c.What
		if c.Place != "" {
			where += ", " + c.Place
		}
		if c.Transport != "" {
			where += ", " + TransportTitle(c.Transport)
		}
		word, holds := "at most", "no"
		if c.AtLeast {
			word = "at least"
		}
		if c.Holds() {
			holds = "yes"
		}
		parts := ""
		for i, p := range c.Parts {
			if i > 0 {
				parts += ", "
			}
			parts += fmt.Sprintf("%s %s %s", p.Name, Thousands(p.Value), p.Unit)
		}
		limit := fmt.Sprintf("%s %s %s", word, figure(c.Limit), c.Unit)
		if c.Limit == 0 {
			limit, holds = "-", "-"
		}
		t.Rows = append(t.Rows, []string{where + mark(c.Noisy), figure(c.Value) + " " + c.Unit, limit, holds, parts})
	}
	return t
}

// figure spells a number with as many digits as it deserves.
func figure(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 1:
		return fmt.Sprintf("%.3g", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return Thousands(v)
}

// CurveTables shows one table per axis: each line a value, each column a work at a
// place over a transport.
func (r *Report) CurveTables() []Table {
	var all []Table
	for _, axis := range r.Axes() {
		t := Table{Title: "Along " + axis + ": IOPS (p99 in us), 4 KiB", Head: []string{axis}}
		rows := map[string][]string{}
		var order []string
		columns := 0
		for _, c := range r.Curves {
			if c.Axis != axis {
				continue
			}
			columns++
			t.Head = append(t.Head, c.Title())
			for _, p := range c.Points {
				if rows[p.Label] == nil {
					rows[p.Label] = []string{p.Label}
					order = append(order, p.Label)
				}
				for len(rows[p.Label]) < columns {
					rows[p.Label] = append(rows[p.Label], "-")
				}
				rows[p.Label] = append(rows[p.Label], fmt.Sprintf("%s (%s)%s", Thousands(p.Median.IOPS), micros(p.Median.P99US), mark(p.Noisy)))
			}
		}
		for _, label := range order {
			for len(rows[label]) <= columns {
				rows[label] = append(rows[label], "-")
			}
			t.Rows = append(t.Rows, rows[label])
		}
		all = append(all, t)
	}
	return all
}

// Title names a curve among those of its axis.
func (c Curve) Title() string {
	return c.Place + " " + map[string]string{"randread": "read", "randwrite": "write"}[c.Kind] + ", " + TransportTitle(c.Transport)
}

// Axes lists those that were measured.
func (r *Report) Axes() []string {
	var all []string
	for _, c := range r.Curves {
		if !slices.Contains(all, c.Axis) {
			all = append(all, c.Axis)
		}
	}
	return all
}
