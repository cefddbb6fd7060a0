package result

import "fmt"

// GoalTable says what the project set out to reach, as far as the report has the
// rows for it, and what it reaches. All are ratios within one run.
func (r *Report) GoalTable() Table {
	t := Table{Title: "Goals", Head: []string{"", "wanted, at least", "reached", "holds"}}
	add := func(name string, wanted, got float64, ok bool) {
		if ok {
			t.Rows = append(t.Rows, []string{name, fmt.Sprintf("%.4g", wanted), fmt.Sprintf("%.2f", got), map[bool]string{true: "yes", false: "no"}[got >= wanted]})
		}
	}
	n := r.Machine.CPUs
	deep := func(kind string) Work { return Work{Kind: kind, Block: blockBytes, Depth: 32, Jobs: n} }
	r.peerGoals(add, deep)
	for _, place := range []string{File, Loop} {
		for _, g := range []struct {
			w      Work
			wanted float64
		}{{deep("randread"), 0.85}, {deep("randwrite"), 0.85}, {Work{Kind: "randread", Block: blockBytes, Depth: 1, Jobs: 1}, 0.8},
			{Work{Kind: "randwrite", Block: blockBytes, Depth: 1, Jobs: 1}, 0.8}} {
			e, ok := r.efficiencyAt("uring", place, g.w)
			add("efficiency, io_uring, "+place+", "+g.w.Title(), g.wanted, e, ok)
		}
	}
	for _, kind := range []string{"read", "write"} {
		w := Work{Kind: kind, Block: 128 << 10, Depth: 8, Jobs: 1}
		e, ok := r.efficiencyAt("uring", Loop, w)
		add("efficiency, io_uring, loop, "+w.Title(), 0.8, e, ok)
	}
	for _, g := range []struct {
		kind   string
		wanted float64
	}{{"get", 6}, {"set", 3}} {
		limit, ok := r.RawRate(g.kind, deep("randread"))
		plain := r.Find(Gomemcache, "", "", Work{Kind: g.kind, Block: blockBytes, Depth: 1, Jobs: 16})
		if ok && plain != nil && plain.Median.IOPS > 0 {
			add("raw client / gomemcache with 16 goroutines, "+g.kind, g.wanted, limit/plain.Median.IOPS, true)
		}
	}
	return t
}

// peerGoals are those that need a peer of the same run.
func (r *Report) peerGoals(add func(name string, wanted, got float64, ok bool), deep func(string) Work) {
	for _, g := range []struct {
		peer, transport, kind string
		wanted                float64
	}{
		{"nbdfuse", "uring", "randread", 4}, {"nbdfuse", "uring", "randwrite", 3}, {"nbdfuse", "dev", "randread", 2}, {"nbdfuse", "dev", "randwrite", 2},
		{"qemu-sd", "uring", "randread", 1.7}, {"qemu-sd", "uring", "randwrite", 1.6}, {"naive", "uring", "randread", 5}, {"naive", "uring", "randwrite", 3.5},
	} {
		ours, theirs := r.Find(Kvbfs, g.transport, Loop, deep(g.kind)), r.Find(g.peer, "", Loop, deep(g.kind))
		if ours != nil && theirs != nil && theirs.Median.IOPS > 0 {
			add(fmt.Sprintf("%s / %s, loop, %s", TransportTitle(g.transport), g.peer, deep(g.kind).Title()), g.wanted, ours.Median.IOPS/theirs.Median.IOPS, true)
		}
	}
	null, plain := r.Find(Null, "uring", Loop, deep("randread")), r.Find("gofuse-null", "", Loop, deep("randread"))
	if null != nil && plain != nil && plain.Median.IOPS > 0 {
		add("FUSE alone over io_uring / go-fuse tuned, without a store, loop, "+deep("randread").Title(), 2.2, null.Median.IOPS/plain.Median.IOPS, true)
	}
}

// efficiencyAt is the efficiency of kvbfs's row for a work.
func (r *Report) efficiencyAt(transport, place string, w Work) (float64, bool) {
	row := r.Find(Kvbfs, transport, place, w)
	if row == nil {
		return 0, false
	}
	return r.Efficiency(*row)
}
