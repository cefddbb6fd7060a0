package result

import (
	"fmt"

	"github.com/kvbfs/kvbfs/cmd/internal/plot"
)

// Chart is a drawing with a name that does for a file.
type Chart struct{ Name, SVG string }

// Charts are all that the report has to draw, in the order of its tables.
func (r *Report) Charts() []Chart {
	var all []Chart
	add := func(name string, ok bool, svg func() string) {
		if ok {
			all = append(all, Chart{name, svg()})
		}
	}
	raw := r.rawBars()
	add("raw", len(raw.Groups) > 0, raw.SVG)
	for _, place := range Places {
		b := r.layerBars(place)
		add("layers-"+place, len(b.Groups) > 0, b.SVG)
	}
	eff := r.efficiencyBars()
	add("efficiency", len(eff.Groups) > 0, eff.SVG)
	for _, place := range Places {
		b := r.peerBars(place)
		add("peers-"+place, len(b.Groups) > 0, b.SVG)
	}
	for _, axis := range r.Axes() {
		add("curve-"+fileName(axis), true, r.curveLines(axis).SVG)
	}
	return all
}

func fileName(s string) string {
	out := []byte(s)
	for i, c := range out {
		if c == ' ' {
			out[i] = '-'
		}
	}
	return string(out)
}

// rawBars shows the store's own limits by depth.
func (r *Report) rawBars() plot.Bars {
	c := plot.Bars{Title: "The store alone", Subtitle: "4 KiB operations per second of the raw client, by batch", Unit: "ops/s", Series: []string{"GET", "SET"}}
	for _, row := range r.Rows {
		if row.Beside != nil || row.Subject != Raw || row.Work.Kind != "get" {
			continue
		}
		w := row.Work
		w.Kind = "set"
		g := plot.Group{Name: fmt.Sprintf("%d x %d", w.Depth, w.Jobs), Bars: []plot.Bar{{Value: row.Median.IOPS}}}
		if w.Run > 0 {
			g.Name = fmt.Sprintf("run of %d x %d", w.Run, w.Jobs)
		}
		if set := r.Find(Raw, "", "", w); set != nil {
			g.Bars = append(g.Bars, plot.Bar{Value: set.Median.IOPS})
		}
		c.Groups = append(c.Groups, g)
	}
	return c
}

// layerBars shows FUSE alone and kvbfs at one place, 4 KiB works only: others have
// another scale.
func (r *Report) layerBars(place string) plot.Bars {
	c := plot.Bars{Title: "4 KiB on " + place, Subtitle: "FUSE with a store that keeps nothing, and kvbfs", Unit: "IOPS"}
	for _, t := range r.Transports() {
		c.Series = append(c.Series, "FUSE alone, "+TransportTitle(t), "kvbfs, "+TransportTitle(t))
	}
	for _, w := range r.WorksAt(place, Kvbfs) {
		if w.Block != blockBytes {
			continue
		}
		g := plot.Group{Name: fmt.Sprintf("%s QD%dx%d", w.Kind, w.Depth, w.Jobs)}
		for _, t := range r.Transports() {
			for _, subject := range []string{Null, Kvbfs} {
				b := plot.Bar{Unknown: true, Label: "not measured"}
				if row := r.Find(subject, t, place, w); row != nil {
					b = plot.Bar{Value: row.Median.IOPS}
				}
				g.Bars = append(g.Bars, b)
			}
		}
		c.Groups = append(c.Groups, g)
	}
	return c
}

// efficiencyBars shows measured / bound on the file and the loop device.
func (r *Report) efficiencyBars() plot.Bars {
	c := plot.Bars{Title: "Efficiency", Subtitle: "kvbfs / the bound of FUSE's time plus the store's time, both measured in the same run", Line: 1, LineLabel: "bound"}
	for _, t := range r.Transports() {
		c.Series = append(c.Series, TransportTitle(t))
	}
	for _, place := range []string{File, Loop} {
		for _, w := range r.WorksAt(place, Kvbfs) {
			if w.Kind == "randrw" || w.Block != blockBytes || w.Jobs != 1 && w.Jobs != r.Machine.CPUs {
				continue
			}
			g := plot.Group{Name: fmt.Sprintf("%s %s%d", place, map[string]string{"randread": "r", "randwrite": "w"}[w.Kind], w.Depth)}
			if w.Jobs > 1 {
				g.Name += fmt.Sprintf("x%d", w.Jobs)
			}
			known := false
			for _, t := range r.Transports() {
				b := plot.Bar{Unknown: true, Label: "not measured"}
				if row := r.Find(Kvbfs, t, place, w); row != nil {
					if e, ok := r.Efficiency(*row); ok {
						b, known = plot.Bar{Value: e, Label: fmt.Sprintf("%.2f", e)}, true
					}
				}
				g.Bars = append(g.Bars, b)
			}
			if known {
				c.Groups = append(c.Groups, g)
			}
		}
	}
	return c
}

// peerBars shows kvbfs and its peers at one place.
func (r *Report) peerBars(place string) plot.Bars {
	c := plot.Bars{Title: "Beside others: 4 KiB on " + place, Subtitle: "the same fio jobs in alternating rounds", Unit: "IOPS"}
	peers := r.Peers()
	if len(peers) == 0 {
		return c
	}
	for _, t := range r.Transports() {
		c.Series = append(c.Series, "kvbfs, "+TransportTitle(t))
	}
	c.Series = append(c.Series, peers...)
	for _, w := range r.WorksAt(place, Kvbfs) {
		if w.Block != blockBytes || w.Depth == 1 || w.Jobs != r.Machine.CPUs || w.Kind == "randrw" {
			continue
		}
		g := plot.Group{Name: w.Title()}
		bar := func(row *Row) {
			b := plot.Bar{Unknown: true, Label: "not measured"}
			if row != nil {
				b = plot.Bar{Value: row.Median.IOPS}
			}
			g.Bars = append(g.Bars, b)
		}
		for _, t := range r.Transports() {
			bar(r.Find(Kvbfs, t, place, w))
		}
		for _, p := range peers {
			bar(r.Find(p, "", place, w))
		}
		c.Groups = append(c.Groups, g)
	}
	return c
}

// curveLines shows the curves of one axis.
func (r *Report) curveLines(axis string) plot.Lines {
	c := plot.Lines{Title: "Along " + axis, Subtitle: "4 KiB random reads and writes", XLabel: axis, Unit: "IOPS", LogX: true}
	for _, cu := range r.Curves {
		if cu.Axis != axis {
			continue
		}
		se := plot.Series{Name: cu.Title()}
		for _, p := range cu.Points {
			se.Points = append(se.Points, plot.Point{X: p.X, Y: p.Median.IOPS, Label: p.Label})
		}
		c.Series = append(c.Series, se)
	}
	return c
}
