package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// slice is how long one blocking wait lasts at most.
const slice = wire.Slice

// node is one Redis process, shared by all channels. A node is never forgotten:
// channels number their connections by it.
type node struct {
	store  *Store
	index  int // in the store's list
	server int // the contract's number of the server that it belongs to
	addr   string
	where  wire.Address

	// admin asks this very process what is about itself: CLIENT LIST, INFO.
	admin *goredis.Client

	// spare counts vital blocks that were stored while it is full.
	spare atomic.Int32

	// copyFrom is where slotKey begins to look.
	copyFrom atomic.Int32

	// doubts counts why it has to show what we remember; cleared, guarded by histories.mu, is
	// how many of them are over.
	doubts  atomic.Uint32
	cleared uint32

	// era grows when connections that are open must be greeted anew: see history.go.
	era atomic.Uint32

	holds   wire.Holds
	outage  wire.Outage
	silence wire.Silence
	// unconfirmed tells of flushes that replicas or the log do not confirm.
	unconfirmed wire.Outage
}

// newNode makes a node; it is not in the list yet.
func (s *Store) newNode(ctx context.Context, server int, addr string) (*node, error) {
	n := &node{store: s, server: server, addr: addr}
	if err := n.where.Lookup(ctx, addr); err != nil {
		return nil, err
	}
	n.silence.Count = &s.silent
	n.outage.Name, n.outage.Log = "redis "+addr, s.cfg.Log
	n.unconfirmed.Name, n.unconfirmed.Log = "a flush on redis "+addr, s.cfg.Log
	n.admin = goredis.NewClient(s.options(addr))
	return n, nil
}

// greeting counts the replies of a new connection's first commands.
type greeting struct {
	steps []greetStep // in the order sent
	key   string      // of the sentinel
	proof []byte      // its value, nil: not asked
}

type greetStep uint8

const (
	greetAuth   greetStep = iota // AUTH
	greetSelect                  // SELECT
	greetName                    // CLIENT SETNAME: for the proof that it is drained
	greetID                      // CLIENT ID
	greetRole                    // INFO replication
	greetProof                   // GET of the sentinel
)

// appendGreeting appends what a connection sends first.
func (n *node) appendGreeting(b []byte, g *greeting) []byte {
	cfg := &n.store.cfg
	add := func(step greetStep, words ...string) {
		g.steps = append(g.steps, step)
		b = appendCommand(b, words...)
	}
	switch {
	case cfg.Password != "" && cfg.User != "":
		add(greetAuth, "AUTH", cfg.User, cfg.Password)
	case cfg.Password != "":
		add(greetAuth, "AUTH", cfg.Password)
	}
	if cfg.DB != 0 {
		add(greetSelect, "SELECT", strconv.Itoa(cfg.DB))
	}
	add(greetName, "CLIENT", "SETNAME", n.store.clientName)
	add(greetID, "CLIENT", "ID")
	add(greetRole, "INFO", "replication")
	if g.key, g.proof = n.sentinel(); g.proof != nil {
		add(greetProof, "GET", g.key)
	}
	return b
}

// sentinel returns the key and value by which this node proves who it is; nil: it
// need not.
func (n *node) sentinel() (key string, value []byte) {
	srv := n.store.servers[n.server]
	if n.store.cfg.Mode == Cluster {
		return n.store.slotSentinel(n)
	}
	return srv.sentinelKey, srv.sentinelValue
}

// prove takes the replies to the greeting.
func (c *conn) prove() error {
	for len(c.greeting.steps) > 0 {
		rep, k, err := parseReply(c.in[c.r:c.w], bufferSize-maxLine)
		if err != nil || k == 0 {
			return err
		}
		if rep.kind == replyError && c.greeting.steps[0] != greetName {
			switch classify(rep.line) {
			case refuseMoved: // the sentinel's slot has: the next try asks for another
				c.node.store.redirected(c.node, rep.line)
			case refuseAsk:
				c.node.passOver(rep.line)
			}
			return &serverError{string(rep.line)}
		}
		if err := c.proveStep(c.greeting.steps[0], rep); err != nil {
			return err
		}
		c.greeting.steps = c.greeting.steps[1:]
		c.r += k
	}
	c.state, c.idle = ready, time.Time{}
	return nil
}

func (c *conn) proveStep(step greetStep, rep reply) error {
	switch step {
	case greetAuth, greetSelect:
		if rep.kind != replyStatus {
			return errMalformed
		}
	case greetName: // an old proxy or a user without the right: only the proof of drained connections is weaker
		if rep.kind != replyStatus && rep.kind != replyError {
			return errMalformed
		}
	case greetID:
		if rep.kind != replyInt {
			return errMalformed
		}
		c.id = rep.n
	case greetRole:
		if rep.kind != replyBulk {
			return errMalformed
		}
		return c.node.recognise(parseReplication(rep.data), c.era)
	case greetProof:
		if rep.kind == replyNil || rep.kind == replyBulk && !sentinelMatches(rep.data, c.greeting.proof) {
			return kvstore.ErrServerLost
		}
		if rep.kind != replyBulk {
			return errMalformed
		}
	}
	return nil
}

// sentinelMatches compares a stored record, which ends with its tag, with the
// sentinel's value.
func sentinelMatches(stored, value []byte) bool {
	return len(stored) >= tagSize && bytes.Equal(stored[:len(stored)-tagSize], value)
}

// replication is what INFO replication tells.
type replication struct {
	role     string // "master" or "slave"
	id       string // of the history of changes that the node writes
	before   string // the history that it continues since it became master
	offset   int64  // how far its history is
	branched int64  // the offset up to which both are one, plus 1; -1: none
	replicas int
}

// parseReplication reads the lines "name:value" of INFO replication.
func parseReplication(text []byte) (r replication) {
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		number := func() int64 { v, _ := strconv.ParseInt(value, 10, 64); return v }
		switch name {
		case "role":
			r.role = value
		case "master_replid":
			r.id = value
		case "master_replid2":
			r.before = value
		case "master_repl_offset":
			r.offset = number()
		case "second_repl_offset":
			r.branched = number()
		case "connected_slaves":
			r.replicas = int(number())
		}
	}
	return r
}

// errReplica: the node is not the one that takes changes.
var errReplica = errors.New("this is a replica, not a master")

// drain begins to wait until the server is done with our connection of this id.
// The server is told to drop it: what it has not begun to execute it then never
// does.
func (n *node) drain(id int64) *wire.Drain {
	asked := func(ctx context.Context) (has, answered bool) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		text, err := n.admin.Do(ctx, "CLIENT", "LIST", "ID", id).Text()
		var said goredis.Error
		if errors.As(err, &said) {
			return true, true // it answers and does not tell
		}
		if err != nil {
			return true, false
		}
		// Ids begin again when a server restarts: the name tells ours.
		if !strings.Contains(text, " name="+n.store.clientName+" ") {
			return false, true
		}
		_ = n.admin.ClientKillByFilter(ctx, "ID", strconv.FormatInt(id, 10)).Err()
		return true, true
	}
	return wire.StartDrain(n.store.helpers, asked, func() {
		n.store.cfg.Log("warning: redis %s does not say whether it is done with a connection that was closed %v ago; going on without proof that it is drained", n.addr, wire.DrainLimit)
	})
}

// errSilent: the server answers on a new connection but not on this one.
var errSilent = errors.New("no answer on this connection")

// tick looks after a connection on which nothing may move.
func (c *conn) tick(now time.Time) {
	if !c.pending() || c.state == closed {
		return
	}
	if c.flight.Len() == 0 && (c.held() || !c.restUntil.IsZero()) {
		c.idle = time.Time{}
		return
	}
	if c.idle.IsZero() {
		c.idle = now
		return
	}
	silent := now.Sub(c.idle)
	if silent >= wire.OutageFirst {
		c.node.outage.Trouble(c.idle, errors.New("no answer"))
		c.node.store.lookAround()
		if c.node.store.moves() && c.lostItsPlace() {
			c.drop(errSilent) // what is unanswered is asked of the node that has its place now
			return
		}
	}
	limit := c.ch.store.cfg.TryTimeout
	if silent < limit {
		return
	}
	if c.state != ready {
		// Nothing but the greeting was sent: trying anew is safe.
		c.drop(fmt.Errorf("no answer within %v", limit))
		return
	}
	if c.elsewhere.Answers(now, c.node.store.helpers, c.node.lives) {
		c.drop(errSilent)
	}
}

// lives says whether the node answers on another connection.
func (n *node) lives(ctx context.Context) bool {
	err := n.admin.Ping(ctx).Err()
	var said goredis.Error
	return err == nil || errors.As(err, &said)
}
