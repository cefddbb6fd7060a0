package bench

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// Block sizes of the works.
const (
	block4k  = 4 << 10
	block128 = 128 << 10
	block1m  = 1 << 20
)

// works are what is done to every target.
func works(cpus int, quick bool) []result.Work {
	if quick {
		return []result.Work{
			{Kind: "randread", Block: block4k, Depth: 1, Jobs: 1},
			{Kind: "randread", Block: block4k, Depth: 32, Jobs: cpus},
			{Kind: "randwrite", Block: block4k, Depth: 32, Jobs: cpus},
			{Kind: "read", Block: block128, Depth: 8, Jobs: 1},
		}
	}
	var all []result.Work
	for _, depth := range []int{1, 32} {
		for _, jobs := range jobCounts(cpus) {
			for _, kind := range []string{"randread", "randwrite"} {
				all = append(all, result.Work{Kind: kind, Block: block4k, Depth: depth, Jobs: jobs})
			}
		}
	}
	all = append(all, result.Work{Kind: "randrw", Block: block4k, Depth: 32, Jobs: cpus})
	for _, kind := range []string{"read", "write"} {
		all = append(all, result.Work{Kind: kind, Block: block128, Depth: 8, Jobs: 1},
			result.Work{Kind: kind, Block: block1m, Depth: 4, Jobs: 1})
	}
	return all
}

// jobCounts are 1, 2, 4 ... and the number of CPUs.
func jobCounts(cpus int) []int {
	var counts []int
	for n := 1; n < cpus; n *= 2 {
		counts = append(counts, n)
	}
	return append(counts, cpus)
}

// rawWorks are what the store's own client does. The one with depth 1 and one
// worker is the store's round trip.
func rawWorks(cpus int, quick bool) []result.Work {
	var all []result.Work
	for _, kind := range []string{"get", "set"} {
		for _, jobs := range jobCounts(cpus) {
			all = append(all, result.Work{Kind: kind, Block: block4k, Depth: 1, Jobs: jobs})
		}
		if !quick {
			all = append(all, result.Work{Kind: kind, Block: block4k, Depth: 8, Jobs: cpus})
		}
		all = append(all, result.Work{Kind: kind, Block: block4k, Depth: 32, Jobs: cpus},
			result.Work{Kind: kind, Block: block4k, Depth: 32, Jobs: cpus, Run: rawRun})
	}
	return all
}

// rawRun is the number of consecutive blocks of one operation of the raw client
// that stands for a large request: 128 KiB, which one slot of the pool holds.
const rawRun = 32

// plainWorkers is how many goroutines use the plain client, which sends one
// operation at a time on each of its connections.
const plainWorkers = 16

// measurement is a row before it is measured.
type measurement struct {
	row    result.Row
	target *target // nil: of the raw store
}

// plan says what there is to measure, and which targets that needs.
type plan struct {
	all     []measurement
	targets []*target
}

// planner collects the measurements that --only selects.
type planner struct {
	only *regexp.Regexp
	plan plan
}

func (p *planner) wants(r result.Row) bool { return p.only == nil || p.only.MatchString(r.ID()) }

// add takes the works on a target; a target without any is not needed.
func (p *planner) add(t *target, works []result.Work) {
	for _, w := range works {
		r := result.Row{Subject: t.subject, Transport: t.transport, Place: t.place, Work: w}
		if !p.wants(r) {
			continue
		}
		p.plan.all = append(p.plan.all, measurement{r, t})
		if !slices.Contains(p.plan.targets, t) {
			p.plan.targets = append(p.plan.targets, t)
		}
	}
}

// beside takes the raw store's work again next to each work whose bound it is part of.
// It is meant for what p.add takes later; what that leaves out is dropped (unbounded).
func (p *planner) beside(raw bool, works []result.Work, cpus int) {
	if !raw {
		return
	}
	for _, w := range works {
		for _, shape := range rawShapes(w, cpus) {
			if r := (result.Row{Subject: result.Raw, Work: shape}); p.wants(r) {
				r.Beside = &w
				p.plan.all = append(p.plan.all, measurement{row: r})
			}
		}
	}
}

// rawShapes are the works of the raw client that stand for a work of fio in its bound.
func rawShapes(w result.Work, cpus int) (all []result.Work) {
	for _, kind := range map[string][]string{"randread": {"get"}, "read": {"get"}, "randwrite": {"set"}, "write": {"set"}, "randrw": {"get", "set"}}[w.Kind] {
		shape := result.Work{Kind: kind, Block: block4k, Depth: 32, Jobs: cpus}
		switch {
		case w.Block > block4k:
			shape.Run = rawRun
		case w.Depth == 1:
			shape.Depth, shape.Jobs = 1, min(w.Jobs, cpus)
		}
		all = append(all, shape)
	}
	return all
}

// unbounded drops what was taken beside works that no target has.
func unbounded(all []measurement) []measurement {
	has := map[result.Work]bool{}
	for _, m := range all {
		has[m.row.Work] = has[m.row.Work] || m.row.Subject == result.Kvbfs
	}
	return slices.DeleteFunc(all, func(m measurement) bool { return m.row.Beside != nil && !has[*m.row.Beside] })
}

// plan lists everything in the order in which a round measures it: works one
// after the other, and for each work all targets, so that what will be compared is
// measured at about the same time.
func (b *bench) plan() (plan, error) {
	if b.opt.Curves {
		return plan{}, nil
	}
	p := planner{only: b.opt.only}
	if b.raw {
		for _, w := range rawWorks(b.cpus, b.opt.Quick) {
			if r := (result.Row{Subject: result.Raw, Work: w}); p.wants(r) {
				p.plan.all = append(p.plan.all, measurement{row: r})
			}
		}
		for _, kind := range []string{"get", "set"} {
			w := result.Work{Kind: kind, Block: block4k, Depth: 1, Jobs: plainWorkers}
			if r := (result.Row{Subject: result.Gomemcache, Work: w}); !b.opt.Quick && (!b.foreign || isMemcached(b.opt.Store)) && p.wants(r) {
				p.plan.all = append(p.plan.all, measurement{row: r})
			}
			w = result.Work{Kind: kind, Block: block4k, Depth: 32, Jobs: b.cpus}
			if r := (result.Row{Subject: result.RedisBenchmark, Work: w}); b.redisBenchmark && p.wants(r) {
				p.plan.all = append(p.plan.all, measurement{row: r})
			}
		}
	}
	p.beside(b.raw, works(b.cpus, b.opt.Quick), b.cpus)
	for _, t := range b.possible() {
		p.add(t, works(b.cpus, b.opt.Quick))
		if b.checkTargets(t) && !slices.Contains(p.plan.targets, t) {
			p.plan.targets = append(p.plan.targets, t)
		}
	}
	p.plan.all = unbounded(p.plan.all)
	if len(p.plan.all) == 0 && !b.checksWanted() {
		return plan{}, fmt.Errorf("--only %s selects nothing; a name is like kvbfs/dev/loop/randread-4k-qd32x%d", b.opt.Only, b.cpus)
	}
	slices.SortStableFunc(p.plan.all, func(x, y measurement) int {
		return strings.Compare(order(x.row), order(y.row))
	})
	return p.plan, nil
}

// order sorts measurements by work; the raw store comes first, but for what of it
// is measured beside a work.
func order(r result.Row) string {
	w := r.Work
	switch {
	case r.Beside != nil:
		w = *r.Beside
	case r.Place == "":
		return ""
	}
	return fmt.Sprintf("%08d %04d %04d %s", w.Block, w.Depth, w.Jobs, w.Kind)
}

// possible lists the targets of this machine.
func (b *bench) possible() []*target {
	var all []*target
	for _, transport := range b.transports {
		for _, place := range b.places {
			if place == result.File || place == result.Loop {
				all = append(all, &target{subject: result.Null, transport: transport, place: place})
			}
			all = append(all, &target{subject: result.Kvbfs, transport: transport, place: place})
		}
	}
	for _, peer := range b.peers {
		if peer.device {
			all = append(all, &target{subject: peer.name, place: result.Device, image: peer.path})
			continue
		}
		all = append(all, &target{subject: peer.name, place: result.File, image: peer.path})
		if slices.Contains(b.places, result.Loop) {
			all = append(all, &target{subject: peer.name, place: result.Loop, image: peer.path})
		}
	}
	return all
}

// sorted returns the names in order.
func sorted(sizes map[string]int64) []string { return slices.Sorted(maps.Keys(sizes)) }
