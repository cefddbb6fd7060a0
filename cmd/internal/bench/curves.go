package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// axis is what a curve runs along, for one transport.
type axis struct {
	name   string
	places []string
	points []curvePoint
}

// curvePoint is one value: which mount, how it is mounted, and what is done.
type curvePoint struct {
	x     float64
	label string
	m     *mount
	flags []string
	depth int
	jobs  int
	size  int64 // of each volume, as far as fio goes
	many  int   // volumes that fio uses at once; 0: the first one
}

// kinds of work of every curve.
var curveKinds = []string{"randread", "randwrite"}

// curves measures how cost grows along each axis, one transport and axis after the
// other; within an axis the rounds go over all points.
func (b *bench) curves(ctx context.Context) error {
	if b.foreign {
		return usagef("--curves starts servers of its own: leave --store out")
	}
	b.report.Settings.Store = "private memcached over TCP on this machine"
	// All pools of a transport are there at once: 1, 3/4 and 1/2 of the size.
	if need, free := 3*b.opt.size, availableMemory(); free > 0 && need > free {
		return fmt.Errorf("the volumes need %d MiB of memory and %d MiB are free: choose a smaller --size", need>>20, free>>20)
	}
	for _, transport := range b.transports {
		axes, err := b.axes(ctx, transport)
		if err != nil {
			return err
		}
		for _, a := range axes {
			if err := b.curve(ctx, transport, a); err != nil {
				return err
			}
		}
		// The next transport begins with empty servers, or memory would not do.
		for _, s := range b.servers {
			s.stop()
		}
		b.servers = nil
	}
	return nil
}

// wantsAxis says whether --only selects an axis: its name is curve/AXIS/TRANSPORT.
func (b *bench) wantsAxis(name, transport string) bool {
	return b.opt.only == nil || b.opt.only.MatchString("curve/"+name+"/"+transport)
}

// stored starts a pool of its own with volumes on it, fills them, and leaves it
// unmounted.
func (b *bench) stored(ctx context.Context, name, transport string, servers int, sizes map[string]int64) (*mount, error) {
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	var mine []*server
	for range servers {
		// Slots are even, but not exactly.
		s, err := startServer(ctx, b.place, sum/int64(servers)+sum/int64(4*servers))
		if err != nil {
			return nil, err
		}
		mine = append(mine, s)
		b.servers = append(b.servers, s)
	}
	m, err := b.serve(ctx, name+"-"+transport, storeURL(mine...), transport, sizes)
	if err != nil {
		return nil, err
	}
	for _, v := range sorted(sizes) {
		if err := b.fill(ctx, name+" "+transport, m.image(v), sizes[v]); err != nil {
			return nil, err
		}
	}
	return m, b.place.Umount(ctx, m.dir)
}

// axes makes what the wanted curves need.
func (b *bench) axes(ctx context.Context, transport string) ([]axis, error) {
	builders := []struct {
		name  string
		build func(context.Context, string) (axis, error)
	}{
		{"depth", b.depthAxis}, {"jobs", b.jobsAxis}, {"workers", b.workersAxis}, {"connections", b.connectionsAxis},
		{"servers", b.serversAxis}, {"volume size", b.sizeAxis}, {"volumes", b.volumesAxis},
	}
	var all []axis
	b.one = nil
	for _, bd := range builders {
		if !b.wantsAxis(bd.name, transport) {
			continue
		}
		a, err := bd.build(ctx, transport)
		if err != nil {
			return nil, fmt.Errorf("curve/%s/%s: %w", bd.name, transport, err)
		}
		a.name = bd.name
		all = append(all, a)
	}
	return all, nil
}

// single is the mount of one volume on one server that most axes share.
func (b *bench) single(ctx context.Context, transport string) (*mount, error) {
	var err error
	if b.one == nil {
		b.one, err = b.stored(ctx, "one", transport, 1, map[string]int64{"disk": b.opt.size})
	}
	return b.one, err
}

// along makes points over the shared mount.
func (b *bench) along(ctx context.Context, transport string, values []int, set func(*curvePoint, int)) (axis, error) {
	m, err := b.single(ctx, transport)
	if err != nil {
		return axis{}, err
	}
	a := axis{places: []string{result.File}}
	for _, v := range values {
		p := curvePoint{x: float64(v), label: fmt.Sprint(v), m: m, depth: 32, jobs: b.cpus, size: b.opt.size}
		set(&p, v)
		a.points = append(a.points, p)
	}
	return a, nil
}

// fewer takes the first values only, when it is to be quick.
func (b *bench) fewer(values ...int) []int {
	if b.opt.Quick {
		return values[:2]
	}
	return values
}

func (b *bench) depthAxis(ctx context.Context, transport string) (axis, error) {
	a, err := b.along(ctx, transport, b.fewer(1, 2, 4, 8, 16, 32, 64, 128), func(p *curvePoint, v int) { p.depth = v })
	a.places = b.places[:min(2, len(b.places))]
	return a, err
}

func (b *bench) jobsAxis(ctx context.Context, transport string) (axis, error) {
	a, err := b.along(ctx, transport, b.fewer(1, 2, 4, 8), func(p *curvePoint, v int) { p.jobs, p.depth = v, 8 })
	a.places = b.places[:min(2, len(b.places))]
	return a, err
}

func (b *bench) workersAxis(ctx context.Context, transport string) (axis, error) {
	return b.along(ctx, transport, b.fewer(1, 2, 4, 8), func(p *curvePoint, v int) { p.flags = []string{"--workers", fmt.Sprint(v)} })
}

func (b *bench) connectionsAxis(ctx context.Context, transport string) (axis, error) {
	return b.along(ctx, transport, b.fewer(1, 2, 4), func(p *curvePoint, v int) { p.flags = []string{"--connections", fmt.Sprint(v)} })
}

func (b *bench) sizeAxis(ctx context.Context, transport string) (axis, error) {
	var mb []int
	for n := int(b.opt.size >> 20); n >= 16; n /= 4 {
		mb = append(mb, n)
	}
	slices.Reverse(mb)
	if b.opt.Quick {
		mb = mb[max(0, len(mb)-2):]
	}
	return b.along(ctx, transport, mb, func(p *curvePoint, v int) { p.size, p.label = int64(v)<<20, fmt.Sprintf("%dM", v) })
}

func (b *bench) serversAxis(ctx context.Context, transport string) (axis, error) {
	a := axis{places: []string{result.File}}
	for _, n := range b.fewer(1, 2, 4) {
		m, err := b.stored(ctx, fmt.Sprintf("servers%d", n), transport, n, map[string]int64{"disk": b.opt.size / 4})
		if err != nil {
			return a, err
		}
		a.points = append(a.points, curvePoint{x: float64(n), label: fmt.Sprint(n), m: m, depth: 32, jobs: b.cpus, size: b.opt.size / 4})
	}
	return a, nil
}

// volumesAxis spreads the same load over several volumes of one mount.
func (b *bench) volumesAxis(ctx context.Context, transport string) (axis, error) {
	counts := b.fewer(1, 2, 4, 8)
	sizes := map[string]int64{}
	each := b.opt.size / 16
	for i := range counts[len(counts)-1] {
		sizes[fmt.Sprintf("disk%d", i)] = each
	}
	m, err := b.stored(ctx, "volumes", transport, 1, sizes)
	a := axis{places: []string{result.File}}
	for _, n := range counts {
		a.points = append(a.points, curvePoint{x: float64(n), label: fmt.Sprint(n), m: m, depth: 32, jobs: b.cpus, size: each, many: n})
	}
	return a, err
}

// curve measures one axis and adds its curves to the report.
func (b *bench) curve(ctx context.Context, transport string, a axis) error {
	at := map[string]*result.Curve{}
	var order []string
	for _, place := range a.places {
		for _, kind := range curveKinds {
			c := &result.Curve{Axis: a.name, Transport: transport, Place: place, Kind: kind}
			for _, p := range a.points {
				c.Points = append(c.Points, result.Point{X: p.x, Label: p.label})
			}
			at[place+kind] = c
			order = append(order, place+kind)
		}
	}
	b.show.begin(b.opt.Rounds * len(a.points) * len(order))
	for round := range b.opt.Rounds {
		for i := range a.points {
			if round%2 == 1 {
				i = len(a.points) - 1 - i
			}
			if err := b.point(ctx, transport, a, i, func(place, kind string, s result.Sample) {
				p := &at[place+kind].Points[i]
				p.Samples = append(p.Samples, s)
			}); err != nil {
				return err
			}
		}
	}
	for _, k := range order {
		for i := range at[k].Points {
			p := &at[k].Points[i]
			p.Median, p.Noisy = result.Settle(p.Samples)
		}
		b.report.Curves = append(b.report.Curves, *at[k])
	}
	return nil
}

// point mounts, measures all places and kinds, and unmounts.
func (b *bench) point(ctx context.Context, transport string, a axis, i int, keep func(place, kind string, s result.Sample)) error {
	p := a.points[i]
	if err := b.mount(ctx, p.m, transport, p.flags...); err != nil {
		return err
	}
	images := []string{p.m.image(p.m.volumes[0])}
	for n := 1; n < p.many; n++ {
		images = append(images, p.m.image(p.m.volumes[n]))
	}
	for _, place := range a.places {
		t := &target{subject: result.Kvbfs, transport: transport, place: place, image: images[0], pid: p.m.pid}
		if err := b.ready(ctx, t, p.m.dir); err != nil {
			return err
		}
		if place == result.File {
			// With one file after the other fio would use one at a time.
			t.path = strings.Join(images, ":")
		}
		for _, kind := range curveKinds {
			w := result.Work{Kind: kind, Block: block4k, Depth: p.depth, Jobs: p.jobs}
			name := strings.Join([]string{"curve", a.name, transport, place, p.label, w.Name()}, "/")
			b.show.run("%s", name)
			s, err := repeat(func() (result.Sample, error) {
				return b.fio(ctx, strings.ReplaceAll(name, " ", "-"), t, w, p.size*int64(len(images)))
			})
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return err
			}
			keep(place, kind, s)
		}
		if place == result.Loop {
			if _, err := b.place.Kvbfs(ctx, "detach", t.path); err != nil {
				return err
			}
		}
	}
	return b.place.Umount(ctx, p.m.dir)
}
