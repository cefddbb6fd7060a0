package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// The lease of a volume is a record on the master (no copies: only one server
// can decide). Its holder renews it at a third of its TTL by compare-and-swap,
// which raises the sequence. Nobody trusts another machine's clock:
//
//   - an observer takes the lease over once it has seen the same record for a
//     whole TTL of its own CLOCK_BOOTTIME;
//   - the holder stops writing at the time when it SENT its last successful
//     renewal, plus TTL, less a margin. That is earlier, because the renewal was
//     stored after it was sent and seen after it was stored.
//
// The margin pays for clocks that run at different speeds and for requests that
// passed the fence and are still on their way into the socket.
//
// Readers of other machines share the record while nobody writes (shared.go).
//
// The rules are the same for stores that no other machine can reach (file):
// processes of other containers and users of this machine can, and no lock is
// shared with all of them.

// LeaseOptions of Acquire.
type LeaseOptions struct {
	// TTL is how long others wait for a silent holder; renewal is at a third of
	// it. 0: DefaultTTL. At least 10 ms and at most an hour.
	TTL time.Duration
	// Alone is true when the caller has proof that no other process of this
	// machine holds the volume (the lock on its local state): a lease that this
	// machine holds is then taken over at once.
	Alone bool
	// Resume keeps holder and generation of a lease that this machine holds
	// (recovery after a crash of the daemon); else the generation rises. It has
	// no effect if somebody else held the lease meanwhile: compare ID and
	// Generation.
	Resume bool
	// Wait is how long to wait for another machine's lease to run out before
	// ErrHeld; 0: one TTL, or until the holder is seen to be alive; negative: do
	// not wait.
	Wait time.Duration
	// Notify, if not nil, is told what Acquire waits for.
	Notify func(msg string)

	// Upgrade is a share of this Pool, or nil. It is no obstacle to Acquire, which is
	// ErrHeld if somebody wrote since the share began, and goes on meanwhile. After
	// Acquire the caller abandons one of the two: the share before it writes, or the
	// new lease if it wrote nothing. The TTL is that of the share.
	Upgrade *Lease

	// steal takes the lease whoever has it: Break.
	steal bool
}

// DefaultTTL bounds how long a crashed machine keeps a volume from others.
const DefaultTTL = 20 * time.Second

// minTTL keeps millisecond rounding and scheduling out of the arithmetic.
const minTTL = 10 * time.Millisecond

// margin is the part of a TTL that its holder does not use.
func margin(ttl time.Duration) time.Duration { return ttl / 5 }

// Holder says who holds a lease, for people.
type Holder struct {
	ID         [16]byte // random per acquisition
	Host       string   // host name
	PID        int
	Since      time.Time
	Generation uint64
	SameHost   bool          // this machine, this boot
	TTL        time.Duration // after which it runs out unless it is renewed
}

// Lease is the right to write to one volume, or a share of the right to read it.
// It renews itself until released. Safe for concurrent use.
type Lease struct {
	pool   *Pool
	volume Volume      // as read by Acquire
	mine   leaseRecord // of a reader: its generation only, which mu guards
	share  *share      // of a reader; nil: it may write
	ttl    time.Duration
	fence  kvstore.Fence
	// upgrades is the share that this lease is to take the place of; nil: none.
	upgrades *Lease

	kick   chan struct{}    // asks for a renewal now
	free   chan freeRequest // asks for a release
	ctx    context.Context  // of the renewal goroutine
	cancel context.CancelFunc
	ended  chan struct{} // closed when the renewal goroutine has ended

	mu      sync.Mutex    // guards changed, over, lost, and what is said to be
	changed chan struct{} // closed and replaced when Wait has to look again
	over    error         // why writes will never go on
	lost    error         // why they do not while this lasts: the server that has the lease was emptied
}

// Acquire takes the volume's lease: ErrHeld, wrapped with the holder's name, if
// somebody else has it.
func (p *Pool) Acquire(ctx context.Context, volume string, opt LeaseOptions) (*Lease, error) {
	if opt.Upgrade != nil {
		opt.TTL = opt.Upgrade.ttl
	}
	l, opt, err := p.newLease(ctx, volume, opt)
	if err != nil {
		return nil, err
	}
	if err := writable(l.volume.ROCompat); err != nil {
		l.cancel()
		return nil, fmt.Errorf("volume %s: %w", volume, err)
	}
	l.upgrades = opt.Upgrade
	a := acquisition{lease: l, opt: opt, began: kvstore.Boottime(), fresh: l.mine.holder, since: l.mine.since}
	panicked := true // of a store: a share must not wait for an heir that never begins
	defer func() {
		if panicked {
			l.cancel()
			l.end(kvstore.ErrPanic)
		}
	}()
	sent, err := a.take(ctx)
	taken := err == nil
	if taken {
		err = l.publish(ctx)
	}
	panicked = false
	if err == nil && !l.start(sent) {
		err = fmt.Errorf("acquire %s: %w", volume, kvstore.ErrClosed)
	}
	switch {
	case err == nil:
		return l, nil
	case taken:
		return nil, a.fail(ctx, err)
	}
	l.cancel()
	l.end(err)
	return nil, err
}

// newLease returns a lease that is not taken yet, and opt without its zeros. The
// caller cancels it if it is not started.
func (p *Pool) newLease(ctx context.Context, volume string, opt LeaseOptions) (*Lease, LeaseOptions, error) {
	if opt.TTL == 0 {
		opt.TTL = DefaultTTL
	}
	opt.TTL = opt.TTL.Truncate(time.Millisecond)
	if opt.TTL < minTTL || opt.TTL > maxTTL {
		return nil, opt, fmt.Errorf("lease of %v: use %v to %v: %w", opt.TTL, minTTL, maxTTL, kvstore.ErrInvalid)
	}
	v, err := p.Volume(ctx, volume)
	if err != nil {
		return nil, opt, err
	}
	host, err := os.Hostname()
	if err != nil || len(host) > maxHostname {
		host = "unknown"
	}
	l := &Lease{pool: p, volume: v, ttl: opt.TTL,
		mine: leaseRecord{held: true, volume: v.UUID, holder: newID(), at: p.host, pid: uint32(os.Getpid()),
			ttl: opt.TTL, since: p.opt.Now().UTC(), poolVersion: p.table.Load().record.version, hostname: host},
		kick: make(chan struct{}, 1), free: make(chan freeRequest),
		ended: make(chan struct{}), changed: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l, opt, nil
}

// undo frees a lease under which nothing was written, also when ctx has ended. If
// that fails the lease runs out. One that was resumed stays as the crash left it:
// freed, it would be the next holding that begins, and what the crash left to be
// recovered would be taken for old.
func (l *Lease) undo(ctx context.Context, fresh [16]byte) {
	if l.mine.holder != fresh {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = l.giveBack(ctx)
}

// publish writes holder and generation into the volume's record, before the
// first write: a lost lease record then brings neither an old generation back
// nor a second holder.
func (l *Lease) publish(ctx context.Context) error {
	v, err := l.pool.Update(ctx, l.volume.Name, func(v *Volume) error {
		if v.UUID != l.volume.UUID {
			return fmt.Errorf("%w: %s was removed and made anew", ErrNoVolume, v.Name)
		}
		if v.Generation > l.mine.generation || v.Generation == l.mine.generation && v.last.id != l.mine.holder {
			return fmt.Errorf("%w: %s was taken by another holder meanwhile", ErrHeld, v.Name)
		}
		v.Generation = l.mine.generation
		v.last = lastHolder{id: l.mine.holder, at: l.mine.at, ttl: l.ttl}
		return nil
	})
	if err == nil {
		l.volume = v
	}
	return err
}

// readLease returns the lease's record; nil if there is none.
func (p *Pool) readLease(ctx context.Context, volume [16]byte) (*leaseRecord, stored, error) {
	t := p.table.Load()
	name := p.leaseName(volume)
	s, err := p.get(ctx, t.master, name, kindLease)
	if errors.Is(err, kvstore.ErrAbsent) {
		return nil, stored{}, nil
	}
	if err != nil {
		return nil, s, err
	}
	r, err := decodeLease(s.head, s.body)
	if err == nil && r.volume != volume {
		err = damaged("it is the lease of another volume")
	}
	if err != nil {
		return nil, s, p.opError("read record", t.master, name, err)
	}
	return r, s, nil
}

// writeLease replaces the lease's record. The features and the tail of a newer
// version's record end with it: they belong to its holder.
func (p *Pool) writeLease(ctx context.Context, old stored, r *leaseRecord) error {
	t := p.table.Load()
	name := p.leaseName(r.volume)
	h := head{kind: kindLease, incompat: r.incompat(), nonce: newID(), revision: old.head.revision + 1}
	return p.replace(ctx, t.master, name, old.raw, seal(name, h, r.encode()))
}

// Holder reads who may write to a volume; ok is false if nobody does.
func (p *Pool) Holder(ctx context.Context, volume string) (h Holder, ok bool, err error) {
	writer, _, err := p.Holders(ctx, volume)
	if err != nil || writer == nil {
		return Holder{}, false, err
	}
	return *writer, true, nil
}

// Holders reads who may write to a volume, nil if nobody does, and else who shares
// its lease for reading. Some of them may have died since they renewed it.
func (p *Pool) Holders(ctx context.Context, volume string) (writer *Holder, readers []Holder, err error) {
	v, err := p.Volume(ctx, volume)
	if err != nil {
		return nil, nil, err
	}
	r, _, err := p.readLease(ctx, v.UUID)
	if err != nil || r == nil {
		return nil, nil, err
	}
	if r.held {
		writer = &Holder{ID: r.holder, Host: r.hostname, PID: int(r.pid), Since: r.since, Generation: r.generation,
			SameHost: r.at == p.host, TTL: r.ttl}
	}
	for _, d := range r.readers {
		readers = append(readers, Holder{ID: d.id, Host: d.hostname, PID: int(d.pid), Since: d.since, Generation: r.generation,
			SameHost: d.at == p.host, TTL: d.ttl})
	}
	return writer, readers, nil
}

// heldError says who has a volume and what to do.
func heldError(volume string, r *leaseRecord) error {
	switch {
	case r == nil:
		return fmt.Errorf("%w: %s: the record of its lease was lost, so its last holder may still write: try again in a while", ErrHeld, volume)
	case r.held:
		return fmt.Errorf("%w: %s is held by %s (pid %d) since %s: unmount it there, or wait %v if that machine is gone",
			ErrHeld, volume, r.hostname, r.pid, forPeople(r.since), r.ttl)
	case len(r.readers) > 0:
		return fmt.Errorf("%w: %s is open for reading on %s: close it there, or wait %v if that machine is gone",
			ErrHeld, volume, readersOf(r), longestTTL(r))
	}
	return fmt.Errorf("%w: %s was taken by another holder", ErrHeld, volume)
}

func forPeople(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// Server is the address of the server that has the lease's record: the first one of the
// pool. Writes to all servers wait while it keeps silent for longer than the lease lasts.
func (l *Lease) Server() string { return l.pool.table.Load().record.servers[0].address }

// Fence is checked by the store before each send; it follows the lease.
func (l *Lease) Fence() *kvstore.Fence { return &l.fence }

// ID and Generation identify the holder in the local state.
func (l *Lease) ID() [16]byte { return l.mine.holder }

// Generation of this holding; of a share that of the last writer.
func (l *Lease) Generation() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mine.generation
}
