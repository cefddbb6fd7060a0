package tikv

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/tikv/client-go/v2/testutils"
	"github.com/tikv/client-go/v2/tikv"
	"github.com/tikv/client-go/v2/tikvrpc"
	pd "github.com/tikv/pd/client"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// mock is a cluster of the client's own mock, of three stores and one region. What the
// mock lacks is made good here: a compare-and-swap that creates, and one that nothing
// overtakes.
type mock struct {
	tikv.Client
	cluster   *testutils.MockCluster
	directory pd.Client
	region    uint64
	stores    []*wireServer

	mu   sync.Mutex  // held while the mock works
	down atomic.Bool // nothing answers
	// lose, if it says so, lets a request get no answer, and executes it after a while;
	// below 0: never.
	lose  func(req *tikvrpc.Request) (late time.Duration, lost bool)
	ghost sync.WaitGroup
	// mum, if it says so, executes a request and gives no answer.
	mum func(req *tikvrpc.Request) bool
}

var errDown = errors.New("the mock does not answer")

// startMock starts a cluster.
func startMock(t testing.TB) *mock {
	t.Helper()
	quiet()
	rpc, cluster, directory, err := testutils.NewMockTiKV("", nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &mock{Client: rpc, cluster: cluster, directory: directory}
	stores, _, region, _ := testutils.BootstrapWithMultiStores(cluster, copies)
	m.region = region
	m.serveStores(t, stores)
	return m
}

// newMock starts a cluster and opens a store on it, over sockets or not.
func newMock(t testing.TB, wire bool) (*mock, *Store) {
	t.Helper()
	m := startMock(t)
	var s *Store
	if wire {
		var err error
		if s, err = Open(bg(t), Config{PD: []string{servePD(t, m.directory)}, Log: t.Logf}); err != nil {
			t.Fatal(err)
		}
	} else {
		s = assemble("mock", t.Logf, m.directory, m, func() {})
	}
	t.Cleanup(func() {
		m.ghost.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, s
}

// SendRequest implements tikv.Client.
func (m *mock) SendRequest(ctx context.Context, addr string, req *tikvrpc.Request, timeout time.Duration) (*tikvrpc.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m.down.Load() {
		return nil, errDown
	}
	if m.lose != nil {
		if late, lost := m.lose(req); lost {
			if late < 0 {
				return nil, errDown
			}
			again := *req
			m.ghost.Go(func() {
				time.Sleep(late)
				m.mu.Lock()
				defer m.mu.Unlock()
				_, _ = m.Client.SendRequest(context.Background(), addr, &again, timeout)
			})
			return nil, errDown
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	send := m.Client.SendRequest
	if req.Type == tikvrpc.CmdRawCompareAndSwap {
		send = m.swap
	}
	resp, err := send(ctx, addr, req, timeout)
	if m.mum != nil && m.mum(req) {
		return nil, errDown
	}
	return resp, err
}

// swap is a compare-and-swap made of the mock's get and put. mu is held.
func (m *mock) swap(ctx context.Context, addr string, req *tikvrpc.Request, timeout time.Duration) (*tikvrpc.Response, error) {
	r := req.RawCompareAndSwap()
	get := tikvrpc.NewRequest(tikvrpc.CmdRawGet, &kvrpcpb.RawGetRequest{Key: r.Key, Cf: r.Cf}, req.Context)
	resp, err := m.Client.SendRequest(ctx, addr, get, timeout)
	if err != nil {
		return nil, err
	}
	was := resp.Resp.(*kvrpcpb.RawGetResponse)
	if was.RegionError != nil {
		return &tikvrpc.Response{Resp: &kvrpcpb.RawCASResponse{RegionError: was.RegionError}}, nil
	}
	out := &kvrpcpb.RawCASResponse{PreviousNotExist: was.NotFound, PreviousValue: was.Value}
	out.Succeed = was.NotFound == r.PreviousNotExist && bytes.Equal(was.Value, r.PreviousValue)
	if out.Succeed {
		put := tikvrpc.NewRequest(tikvrpc.CmdRawPut, &kvrpcpb.RawPutRequest{Key: r.Key, Value: r.Value, Cf: r.Cf}, req.Context)
		resp, err := m.Client.SendRequest(ctx, addr, put, timeout)
		if err != nil {
			return nil, err
		}
		out.RegionError = resp.Resp.(*kvrpcpb.RawPutResponse).RegionError
	}
	return &tikvrpc.Response{Resp: out}, nil
}

func bg(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func want(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) || (want == nil) != (got == nil) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// opened is a store with a layer, proven and joined, and a channel.
func opened(t testing.TB, wire bool) (*mock, *Store, kvstore.Channel) {
	t.Helper()
	m, s := newMock(t, wire)
	place := storetest.Place(1).Prove("kvbfs:test:sentinel")
	name, value := place.Sentinel(0)
	want(t, errors.Join(s.Control().Add(bg(t), 0, name, value), s.CreateLayer(bg(t), 7), s.Join(place)), nil)
	ch, err := s.Channel(bg(t))
	want(t, err, nil)
	t.Cleanup(func() { _ = ch.Close() })
	return m, s, ch
}

// filled is a block of one byte.
func filled(c byte) []byte { return bytes.Repeat([]byte{c}, kvstore.BlockSize) }

func write(n uint64, c byte) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Write, Key: kvstore.Key{Layer: 7, Number: n}, Data: filled(c)}
}

func read(n uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Read, Key: kvstore.Key{Layer: 7, Number: n}, Data: make([]byte, kvstore.BlockSize)}
}

// do1 executes one operation.
func do1(t testing.TB, ch kvstore.Channel, op *kvstore.Op) error {
	t.Helper()
	ch.Do(bg(t), []*kvstore.Op{op})
	return op.Err
}

func holds(t testing.TB, ch kvstore.Channel, n uint64, c byte) {
	t.Helper()
	op := read(n)
	want(t, do1(t, ch, op), nil)
	if !bytes.Equal(op.Data, filled(c)) {
		t.Fatalf("block %d holds %x..., want %x", n, op.Data[:4], c)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}
