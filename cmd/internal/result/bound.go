package result

import "slices"

// Find returns the row with this identity, nil if it was not measured.
func (r *Report) Find(subject, transport, place string, w Work) *Row {
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Beside == nil && row.Subject == subject && row.Transport == transport && row.Place == place && row.Work == w {
			return row
		}
	}
	return nil
}

// RawRate is how many blocks of one kind a client alone moves per second, kvbfs's or
// the engine's own benchmark, whichever is faster, for a work of this shape, in the state that is fair to it: one operation at a
// time per job where the work has depth 1, runs of consecutive blocks where its
// requests have many, else as many single blocks in flight as were measured.
func (r *Report) RawRate(kind string, w Work) (float64, bool) {
	best, found := 0.0, false
	for _, row := range r.Rows {
		if row.Beside != nil || row.Subject != Raw && row.Subject != RedisBenchmark || row.Work.Kind != kind || row.Median.IOPS <= 0 {
			continue
		}
		fits := false
		switch {
		case w.Block > blockBytes:
			fits = row.Work.Run > 0
		case w.Depth == 1:
			fits = row.Work.Run == 0 && row.Work.Depth == 1 && row.Work.Jobs == min(w.Jobs, r.Machine.CPUs)
		default:
			// A work of few in flight may be batched like one of many, so the best
			// depth that it can fill is the limit.
			fits = row.Work.Run == 0 && row.Work.Depth <= w.Depth && row.Work.Jobs == r.Machine.CPUs
		}
		if fits && row.Median.IOPS > best {
			best, found = row.Median.IOPS, true
		}
	}
	return best, found
}

// round is one round of a row: the row's rate, FUSE's alone (0: not measured), and
// the time in seconds that the raw store takes for an I/O of it.
type round struct {
	rate, null, raw float64
	quiet           bool
}

func (t round) bound() float64 { return 1 / (1/t.null + t.raw) }

// rounds pairs what was measured next to each other, since a machine may be a third
// faster some minutes later. It falls back to one round of the medians where the raw
// store was not measured beside the row's work; none if it was not measured at all.
// Rounds with stolen time are left out unless they are the most.
func (r *Report) rounds(row Row) []round {
	place := row.Place
	if place == Ext4 || place == XFS {
		place = Loop // a file system is bounded by the loop device that it is on
	}
	null := r.Find(Null, row.Transport, place, row.Work)
	var all, quiet []round
	for i := range row.Samples {
		raw, still, ok := r.rawTimeIn(i, row.Work)
		if !ok || null != nil && i >= len(null.Samples) {
			break
		}
		t := round{rate: row.Samples[i].IOPS, raw: raw, quiet: still && row.Samples[i].Quiet()}
		if null != nil {
			t.null = null.Samples[i].IOPS
			t.quiet = t.quiet && null.Samples[i].Quiet()
		}
		if all = append(all, t); t.quiet {
			quiet = append(quiet, t)
		}
	}
	if len(all) == 0 {
		raw, ok := r.rawTime(row.Work)
		if !ok {
			return nil
		}
		t := round{rate: row.Median.IOPS, raw: raw}
		if null != nil {
			t.null = null.Median.IOPS
		}
		return []round{t}
	}
	if 2*len(quiet) < len(all) {
		return all
	}
	return quiet
}

// middleOf is the median of a figure over rounds that have it.
func middleOf(rounds []round, figure func(round) float64) float64 {
	var v []float64
	for _, t := range rounds {
		v = append(v, figure(t))
	}
	return Middle(v)
}

// bounded are the rounds of a row in which FUSE alone was measured too.
func (r *Report) bounded(row Row) []round {
	return slices.DeleteFunc(r.rounds(row), func(t round) bool { return t.null <= 0 })
}

// Bound is the rate of I/O that a row of kvbfs could reach at best: the time that
// FUSE takes for an I/O (the null store, same transport, place and work) and the
// time that the raw store takes for its blocks add up, because both need the same
// cores. The median of the rounds.
func (r *Report) Bound(row Row) (iops float64, ok bool) {
	rounds := r.bounded(row)
	return middleOf(rounds, round.bound), len(rounds) > 0
}

// rawTime is what the raw store takes for one I/O, in seconds, by its rows' medians.
func (r *Report) rawTime(w Work) (float64, bool) {
	return timeOf(w, func(kind string) (float64, bool) { return r.RawRate(kind, w) })
}

// rawTimeIn is rawTime by what was measured beside the work in round i. One shape of
// the raw client's work is measured there; what the best one, or the engine's own
// benchmark, is faster by is taken from their rows.
func (r *Report) rawTimeIn(i int, w Work) (seconds float64, quiet, ok bool) {
	quiet = true
	seconds, ok = timeOf(w, func(kind string) (float64, bool) {
		for _, row := range r.Rows {
			if row.Beside == nil || *row.Beside != w || row.Work.Kind != kind || i >= len(row.Samples) {
				continue
			}
			best, ok := r.RawRate(kind, w)
			same := r.Find(Raw, "", "", row.Work)
			if !ok || same == nil || same.Median.IOPS <= 0 {
				return 0, false
			}
			quiet = quiet && row.Samples[i].Quiet()
			rate := row.Samples[i].IOPS * best / same.Median.IOPS
			return rate, rate > 0
		}
		return 0, false
	})
	return seconds, quiet, ok
}

// timeOf is the time in seconds of one I/O at the rates of a store in blocks per second.
func timeOf(w Work, rate func(kind string) (float64, bool)) (float64, bool) {
	t := 0.0
	for kind, share := range map[string]float64{"get": w.reads(), "set": 1 - w.reads()} {
		if share == 0 {
			continue
		}
		v, ok := rate(kind)
		if !ok {
			return 0, false
		}
		t += share / v
	}
	return t * float64(w.Block) / blockBytes, true
}

// Efficiency is measured rate / bound, the median of the rounds.
func (r *Report) Efficiency(row Row) (float64, bool) {
	rounds := r.bounded(row)
	if len(rounds) == 0 || row.Subject != Kvbfs {
		return 0, false
	}
	return middleOf(rounds, func(t round) float64 { return t.rate / t.bound() }), true
}

// OfLimit is the share of the store's own limit that a row reaches: the paper's
// measure. The median of the rounds.
func (r *Report) OfLimit(row Row) (float64, bool) {
	rounds := r.rounds(row)
	return middleOf(rounds, func(t round) float64 { return t.rate * t.raw }), len(rounds) > 0
}
