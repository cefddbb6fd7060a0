package result

// Find returns the row with this identity, nil if it was not measured.
func (r *Report) Find(subject, transport, place string, w Work) *Row {
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Subject == subject && row.Transport == transport && row.Place == place && row.Work == w {
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
		if row.Subject != Raw && row.Subject != RedisBenchmark || row.Work.Kind != kind || row.Median.IOPS <= 0 {
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

// Bound is the rate of I/O that a row of kvbfs could reach at best: the time that
// FUSE takes for an I/O (the null store, same transport, place and work) and the
// time that the raw store takes for its blocks add up, because both need the same
// cores. A file system is bounded by the loop device that it is on.
func (r *Report) Bound(row Row) (iops float64, ok bool) {
	place := row.Place
	if place == Ext4 || place == XFS {
		place = Loop
	}
	null := r.Find(Null, row.Transport, place, row.Work)
	raw, ok := r.rawTime(row.Work)
	if null == nil || null.Median.IOPS <= 0 || !ok {
		return 0, false
	}
	return 1 / (1/null.Median.IOPS + raw), true
}

// rawTime is what the raw store takes for one I/O, in seconds.
func (r *Report) rawTime(w Work) (float64, bool) {
	t := 0.0
	for kind, share := range map[string]float64{"get": w.reads(), "set": 1 - w.reads()} {
		if share == 0 {
			continue
		}
		rate, ok := r.RawRate(kind, w)
		if !ok {
			return 0, false
		}
		t += share / rate
	}
	return t * float64(w.Block) / blockBytes, true
}

// Efficiency is measured rate / bound.
func (r *Report) Efficiency(row Row) (float64, bool) {
	bound, ok := r.Bound(row)
	if !ok || row.Subject != Kvbfs {
		return 0, false
	}
	return row.Median.IOPS / bound, true
}

// OfLimit is the share of the store's own limit that a row reaches: the paper's
// measure.
func (r *Report) OfLimit(row Row) (float64, bool) {
	t, ok := r.rawTime(row.Work)
	if !ok || t == 0 {
		return 0, false
	}
	return row.Median.IOPS * t, true
}
