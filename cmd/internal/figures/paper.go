package main

import (
	"fmt"
	"slices"

	"github.com/kvbfs/kvbfs/cmd/internal/plot"
	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// What is known here of the paper's figures: rates of 4 KiB operations per second,
// with its store on a machine of its own. Its other bars are not drawn but named.
const (
	paperGetLimit   = 1.2e6
	paperSetLimit   = 400e3
	paperReads      = 1e6 // "over"
	paperWritesLow  = 200e3
	paperWritesHigh = 300e3
	paperCephReads  = 50e3
	paperCephWrites = 17e3
	paperRoundTrip  = 70.0 // us
	paperLatLow     = 60.0 // us per I/O
	paperLatHigh    = 70.0
)

const (
	ofLimit  = "share of the store's own limit, which the same run measured; the paper's store had a machine of its own"
	unknown  = "paper: bar not known here"
	notThere = "not measured"
)

// paperFigures redraws the paper's figures 2 and 6 to 9, each bar relative to the
// store's limit, with the paper's own bar beside it as far as it is known.
func paperFigures(r *result.Report) []result.Chart {
	w := wide(r)
	read, write := w("randread", 4096, 32), w("randwrite", 4096, 32)
	return []result.Chart{
		{Name: "figure-2", SVG: motivation(r, read, write).SVG()},
		{Name: "figure-6", SVG: byPlace(r, "Figure 6: random reads of 4 KiB", read, plot.Bar{Value: paperReads / paperGetLimit, Label: ">0.83"}).SVG()},
		{Name: "figure-7", SVG: byPlace(r, "Figure 7: random writes of 4 KiB", write, paperRange(paperWritesLow/paperSetLimit, paperWritesHigh/paperSetLimit)).SVG()},
		{Name: "figure-8", SVG: latency(r).SVG()},
		{Name: "figure-9", SVG: sequential(r, read).SVG()},
	}
}

func paperRange(low, high float64) plot.Bar {
	return plot.Bar{Value: low, High: high, Label: fmt.Sprintf("%.2f-%.2f", low, high)}
}

// wide returns the work of a kind with the most jobs that was measured.
func wide(r *result.Report) func(kind string, block int64, depth int) result.Work {
	return func(kind string, block int64, depth int) result.Work {
		best := result.Work{Kind: kind, Block: block, Depth: depth}
		for _, row := range r.Rows {
			w := row.Work
			if row.Subject == result.Kvbfs && w.Kind == kind && w.Block == block && w.Depth == depth && w.Jobs > best.Jobs {
				best = w
			}
		}
		return best
	}
}

// share is a bar of what a row reaches of the store's limit.
func share(r *result.Report, row *result.Row) plot.Bar {
	if row != nil {
		if v, ok := r.OfLimit(*row); ok {
			return plot.Bar{Value: v, Label: fmt.Sprintf("%.2f", v)}
		}
	}
	return plot.Bar{Unknown: true, Label: notThere}
}

// ours are the names of kvbfs's series.
func ours(r *result.Report) []string {
	var names []string
	for _, t := range r.Transports() {
		names = append(names, "kvbfs, "+result.TransportTitle(t))
	}
	return names
}

// motivation sets the store's limit beside what block interfaces make of it.
func motivation(r *result.Report, read, write result.Work) plot.Bars {
	c := plot.Bars{Title: "Figure 2: what a block interface leaves of the store", Subtitle: ofLimit, Line: 1, LineLabel: "the store's limit",
		Series: append([]string{"paper: Ceph's block device", "paper: its block interface"}, append(ours(r), "gomemcache, no block interface")...)}
	for _, g := range []struct {
		name        string
		w           result.Work
		ceph, paper plot.Bar
		plain       string
	}{
		{"random read", read, bar(paperCephReads / paperGetLimit), plot.Bar{Value: paperReads / paperGetLimit, Label: ">0.83"}, "get"},
		{"random write", write, bar(paperCephWrites / paperSetLimit), paperRange(paperWritesLow/paperSetLimit, paperWritesHigh/paperSetLimit), "set"},
	} {
		bars := []plot.Bar{g.ceph, g.paper}
		for _, t := range r.Transports() {
			bars = append(bars, share(r, r.Find(result.Kvbfs, t, result.Loop, g.w)))
		}
		plain := plot.Bar{Unknown: true, Label: notThere}
		limit, ok := r.RawRate(g.plain, g.w)
		for _, row := range r.Rows {
			if row.Subject == result.Gomemcache && row.Work.Kind == g.plain && ok && limit > 0 {
				plain = bar(row.Median.IOPS / limit)
			}
		}
		c.Groups = append(c.Groups, plot.Group{Name: g.name + ", loop device", Bars: append(bars, plain)})
	}
	return c
}

func bar(v float64) plot.Bar { return plot.Bar{Value: v, Label: fmt.Sprintf("%.2f", v)} }

// byPlace shows one work at each place; the paper's bar belongs to the raw device.
func byPlace(r *result.Report, title string, w result.Work, paper plot.Bar) plot.Bars {
	c := plot.Bars{Title: title, Subtitle: ofLimit, Line: 1, LineLabel: "the store's limit", Series: append([]string{"paper"}, ours(r)...)}
	for _, place := range []string{result.File, result.Loop, result.Ext4, result.XFS} {
		if !slices.Contains(r.WorksAt(place, result.Kvbfs), w) {
			continue
		}
		bars := []plot.Bar{{Unknown: true, Label: unknown}}
		switch place {
		case result.Loop:
			bars[0] = paper
		case result.File:
			bars[0].Label = "paper: has no file"
		}
		for _, t := range r.Transports() {
			bars = append(bars, share(r, r.Find(result.Kvbfs, t, place, w)))
		}
		c.Groups = append(c.Groups, plot.Group{Name: place, Bars: bars})
	}
	return c
}

// latency shows single requests relative to the store's round trip.
func latency(r *result.Report) plot.Bars {
	c := plot.Bars{Title: "Figure 8: time of one I/O, one at a time", Subtitle: "relative to the store's round trip (the paper: 60-70 us of 70 us, over a network); less is better",
		Line: 1, LineLabel: "the store's round trip", Series: append([]string{"paper"}, ours(r)...)}
	for _, g := range []struct{ kind, raw string }{{"randread", "get"}, {"randwrite", "set"}} {
		w := result.Work{Kind: g.kind, Block: 4096, Depth: 1, Jobs: 1}
		trip := r.Find(result.Raw, "", "", result.Work{Kind: g.raw, Block: 4096, Depth: 1, Jobs: 1})
		for _, place := range []string{result.File, result.Loop} {
			if !slices.Contains(r.WorksAt(place, result.Kvbfs), w) {
				continue
			}
			bars := []plot.Bar{{Unknown: true, Label: unknown}}
			if place == result.Loop {
				bars[0] = paperRange(paperLatLow/paperRoundTrip, paperLatHigh/paperRoundTrip)
			}
			for _, t := range r.Transports() {
				b := plot.Bar{Unknown: true, Label: notThere}
				if row := r.Find(result.Kvbfs, t, place, w); row != nil && trip != nil && trip.Median.MeanUS > 0 {
					v := row.Median.MeanUS / trip.Median.MeanUS
					b = plot.Bar{Value: v, Label: fmt.Sprintf("%.1f", v)}
				}
				bars = append(bars, b)
			}
			c.Groups = append(c.Groups, plot.Group{Name: place + ", " + map[string]string{"get": "read", "set": "write"}[g.raw], Bars: bars})
		}
	}
	return c
}

// sequential shows large requests beside random ones on the loop device.
func sequential(r *result.Report, read result.Work) plot.Bars {
	c := plot.Bars{Title: "Figure 9: sequential and random, loop device", Subtitle: ofLimit, Line: 1, LineLabel: "the store's limit",
		Series: append([]string{"paper"}, ours(r)...)}
	for _, w := range r.WorksAt(result.Loop, result.Kvbfs) {
		if w != read && w.Block == 4096 {
			continue
		}
		bars := []plot.Bar{{Unknown: true, Label: unknown}}
		if w == read {
			bars[0] = plot.Bar{Value: paperReads / paperGetLimit, Label: ">0.83"}
		}
		for _, t := range r.Transports() {
			bars = append(bars, share(r, r.Find(result.Kvbfs, t, result.Loop, w)))
		}
		c.Groups = append(c.Groups, plot.Group{Name: w.Title(), Bars: bars})
	}
	return c
}
