package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
)

// A life is what happens to a volume between the start of a process and its kill. The
// processes of a run follow on each other on one machine, so each one finds what its
// predecessor left: the local state, and servers that may still do what they were sent.
//
// The kill is real as far as the servers and the local state go: at one moment all
// links end, and word of the connections is kept as it was then. What the process does
// in memory afterwards, until it is taken apart, reaches nobody; what it had answered
// before counts, what it had not is under way.

// lives runs so many processes after each other and returns the history of each. The
// last operations of one are the first reads of its successor. The last process is not
// killed but closed. It must be called in a bubble.
func lives(t *testing.T, c Config, w *World, n int) (all [][]operation) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(c.Seed, 50))
	r := &recording{t: t, c: c, w: w}
	var ending sync.WaitGroup
	defer ending.Wait()
	for life := range n {
		p := w.Process()
		r.start(p, dir, life == 0)
		if life > 0 {
			r.readAll(opSurvive)
			all, r.all = append(all, r.all), nil
		}
		if t.Failed() {
			r.d.close()
			return all
		}
		w.Begin()
		if life < n-1 {
			// From the very first operations to nearly the last: a client does two in a
			// batch, on average.
			r.liveUntil(p, dir, life, 1+rng.IntN(2*c.Clients*c.Operations), rng)
			w.End() // what is under way still arrives, as late as it was to
			d := r.d
			ending.Go(func() {
				if err := d.st.Close(); err != nil {
					t.Error(err)
				}
			})
			continue
		}
		r.clients(t.Context(), life)
		w.End()
	}
	r.mu.Lock()
	at := r.order.Add(1)
	r.all = append(r.all, operation{kind: opFlush, block: -1, called: at, done: r.order.Add(1)}) // closing is one
	r.mu.Unlock()
	r.d.close()
	r.start(w.Process(), dir, false)
	r.readAll(opSurvive)
	r.d.close()
	return append(all, r.all)
}

// start starts a process and opens the volume. While a server is stopped, who starts
// is told so, and tries again.
func (r *recording) start(p *Process, dir string, create bool) {
	r.t.Helper()
	blocks := int64(0)
	if create {
		blocks = volumeBlocks
	}
	for try := 0; ; try++ {
		st := stack(r.t, openSimulated(r.t, r.w, p, r.c.Connections, traces(dir)), r.c.WriteBack, cache.Config{Size: r.c.Cache})
		var err error
		if r.d, err = startDisk(r.t, st, dir, blocks); err == nil {
			break
		}
		if e := st.Close(); e != nil || try == 30 || !errors.Is(err, kvstore.ErrUnreachable) {
			r.t.Fatal(err, e)
		}
		time.Sleep(time.Second)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = false
}

// liveUntil runs the clients, kills the process a while after so many operations, and
// takes what is left of it apart.
func (r *recording) liveUntil(p *Process, dir string, life, operations int, rng *rand.Rand) {
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	over, ended := make(chan struct{}), make(chan struct{})
	r.mu.Lock()
	r.left, r.over = operations, over
	r.mu.Unlock()
	var killer sync.WaitGroup
	killer.Go(func() {
		select {
		case <-over:
		case <-ended: // they did fewer
		}
		time.Sleep(time.Duration(rng.Int64N(int64(3*r.w.plan.Delay + time.Millisecond))))
		r.kill(p, dir, life)
		cancel()
	})
	r.clients(ctx, life)
	close(ended)
	killer.Wait()
	// What was cut off counts as under way until now.
	r.mu.Lock()
	for i := range r.all {
		if r.all[i].done == 0 {
			r.all[i].done = r.order.Add(1)
		}
	}
	r.left, r.over = 0, nil
	r.mu.Unlock()
	// An abort leaves the local state as a crash does.
	if err := r.d.set.Abort(volumeName); err != nil {
		r.t.Fatal(err)
	}
	if err := r.d.v.Close(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	if err := r.d.pool.Close(); err != nil {
		r.t.Error(err)
	}
}

// kill ends the life of a process.
func (r *recording) kill(p *Process, dir string, life int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = true
	p.Kill(func() {
		// Under other names, as the process that was killed still has its own locked.
		files, _ := filepath.Glob(filepath.Join(traces(dir), "*.conns"))
		left := map[string][]byte{}
		for i, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				r.t.Error(err)
			}
			left[fmt.Sprintf("killed-%d-%d.conns", life, i)] = b
		}
		for name, b := range left {
			if err := os.WriteFile(filepath.Join(traces(dir), name), b, 0o600); err != nil {
				r.t.Error(err)
			}
		}
	})
}

// cut keeps what was under way when the process was killed. mu is held.
func (r *recording) cut(ops []operation) {
	for _, o := range ops {
		if o.kind == opRead {
			continue // it changed nothing, and nobody saw its answer
		}
		o.maybe = true
		r.all = append(r.all, o)
	}
}

// traces is where the processes of a machine leave word of their connections.
func traces(dir string) string { return filepath.Join(dir, "conns") }
