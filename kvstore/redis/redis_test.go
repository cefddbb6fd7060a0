package redis

import (
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

func TestMain(m *testing.M) {
	// go-redis looks each second whether a server is back, also for a second after Close.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

// Short names of what the tests share.
var (
	bg        = wiretest.Background
	channelOf = wiretest.ChannelOf
	key       = wiretest.Key
	block     = wiretest.Block
	write     = wiretest.Write
	read      = wiretest.Read
	discard   = wiretest.Discard
	do1       = wiretest.Do1
	want      = wiretest.Want
	wantBlock = wiretest.WantBlock
)

const testLayer = wiretest.Layer

// rig is how the tests of all stores behind sockets make ours.
var rig = wiretest.Rig{
	Start: func(t testing.TB, tcp bool) wiretest.Server {
		if tcp {
			return redistest.Start(t, redistest.TCP())
		}
		return redistest.Start(t)
	},
	Open: func(t testing.TB, o wiretest.Options, addrs []string) kvstore.Store {
		return openAt(t, Config{Connections: o.Connections, TryTimeout: o.TryTimeout, Log: o.Log, Servers: addrs})
	},
	Via: func(t testing.TB, o wiretest.Options, addr string, server wiretest.Server) kvstore.Store {
		s := openAt(t, Config{Connections: o.Connections, TryTimeout: o.TryTimeout, Log: o.Log, Servers: []string{server.Addr()}})
		dialTo(s, &unix.SockaddrUnix{Name: addr})
		return s
	},
	Move: func(s kvstore.Store, to unix.Sockaddr) { dialTo(s.(*Store), to) },
}

// dialTo lets dials of the first node go to another address.
func dialTo(s *Store, to unix.Sockaddr) { (*s.nodes.Load())[0].where.At.Store(&to) }

// openAt opens a store that is not joined.
func openAt(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = t.Logf
	}
	s, err := Open(bg(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open makes a joined store over running servers.
func open(t testing.TB, cfg Config, servers ...*redistest.Server) *Store {
	t.Helper()
	for _, s := range servers {
		cfg.Servers = append(cfg.Servers, s.Addr())
	}
	return openStore(t, cfg)
}

// openStore opens a store of any kind, proven and joined.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s := openAt(t, cfg)
	wiretest.Join(t, s, wiretest.Spread{N: len(s.Servers())})
	return s
}

// openUnproven makes a store over one address, without sentinels.
func openUnproven(t testing.TB, cfg Config, addr string) *Store {
	t.Helper()
	cfg.Servers = []string{addr}
	s := openAt(t, cfg)
	want(t, s.Join(wiretest.Unproven{}), nil)
	return s
}

// openUnprovenVia makes a store whose data connections alone go to addr, which stands
// before the server.
func openUnprovenVia(t testing.TB, addr string, server *redistest.Server) *Store {
	t.Helper()
	s := openUnproven(t, Config{}, server.Addr())
	dialTo(s, &unix.SockaddrUnix{Name: addr})
	return s
}

func TestExpectations(t *testing.T)            { wiretest.Expectations(t, rig) }
func TestBatchesAgainstModel(t *testing.T)     { wiretest.BatchesAgainstModel(t, rig) }
func TestLargeMixedBatch(t *testing.T)         { wiretest.LargeMixedBatch(t, rig) }
func TestInvalid(t *testing.T)                 { wiretest.Invalid(t, rig) }
func TestFence(t *testing.T)                   { wiretest.Fence(t, rig) }
func TestParallelChannels(t *testing.T)        { wiretest.ParallelChannels(t, rig) }
func TestControl(t *testing.T)                 { wiretest.Control(t, rig) }
func TestPausedServerIsWaitedFor(t *testing.T) { wiretest.PausedServerIsWaitedFor(t, rig) }
func TestContextEndsAnOutage(t *testing.T)     { wiretest.ContextEndsAnOutage(t, rig) }
func TestDeadServerIsWaitedFor(t *testing.T)   { wiretest.DeadServerIsWaitedFor(t, rig) }
func TestEmptiedServer(t *testing.T)           { wiretest.EmptiedServer(t, rig) }
func TestFenceClosesDuringOutage(t *testing.T) { wiretest.FenceClosesDuringOutage(t, rig) }
func TestNameMoves(t *testing.T)               { wiretest.NameMoves(t, rig) }
func TestFlushAfterTry(t *testing.T)           { wiretest.FlushAfterTry(t, rig) }
func TestTryGoesOn(t *testing.T)               { wiretest.TryGoesOn(t, rig) }
func TestTryLeavesASilentServer(t *testing.T)  { wiretest.TryLeavesASilentServer(t, rig) }
func TestTryLeavesADeadServer(t *testing.T)    { wiretest.TryLeavesADeadServer(t, rig) }
func TestSlowSlices(t *testing.T)              { wiretest.SlowSlices(t, rig) }
func TestCutReplies(t *testing.T)              { wiretest.CutReplies(t, rig) }
func TestBabbler(t *testing.T)                 { wiretest.Babbler(t, rig) }
func TestGhost(t *testing.T)                   { wiretest.Ghost(t, rig) }
func TestGhostOfAnotherChannel(t *testing.T)   { wiretest.GhostOfAnotherChannel(t, rig) }
