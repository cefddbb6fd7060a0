package tikv

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/tikv/client-go/v2/tikv"
	"github.com/tikv/client-go/v2/tikvrpc"

	"github.com/kvbfs/kvbfs/kvstore"
)

const (
	// writeTime is after how long TiKV drops a change that it has not begun: less than
	// the time between the last write under a lease and the first one of another machine
	// that takes it over (a fifth of 20 seconds).
	writeTime = 3 * time.Second
	// hauntTime is for how long TiKV may still execute a change that was given up: that,
	// and some time on its way. A store that was stopped with requests in its sockets
	// counts from when it goes on; if its region has other replicas it is no longer the
	// leader by then, unless it was stopped for less than an election takes.
	hauntTime = 5 * time.Second
)

// witness stands between the client and its connections: the client repeats by itself,
// and only here one sees that a change was sent and not answered.
type witness struct {
	tikv.Client
	haunts *haunts
}

// SendRequest implements tikv.Client.
func (w *witness) SendRequest(ctx context.Context, addr string, req *tikvrpc.Request, timeout time.Duration) (*tikvrpc.Response, error) {
	switch req.Type {
	case tikvrpc.CmdRawBatchPut, tikvrpc.CmdRawBatchDelete, tikvrpc.CmdRawDeleteRange:
		req.MaxExecutionDurationMs = uint64(writeTime.Milliseconds())
	}
	resp, err := w.Client.SendRequest(ctx, addr, req, timeout)
	if err == nil && resp != nil {
		switch r := resp.Resp.(type) {
		// A region error says that it was not executed.
		case *kvrpcpb.RawBatchPutResponse:
			if r.GetError() == "" {
				return resp, nil
			}
		case *kvrpcpb.RawBatchDeleteResponse:
			if r.GetError() == "" {
				return resp, nil
			}
		case *kvrpcpb.RawDeleteRangeResponse:
			if r.GetError() == "" {
				return resp, nil
			}
		}
	}
	switch req.Type {
	case tikvrpc.CmdRawBatchPut:
		var keys [][]byte
		for _, p := range req.RawBatchPut().Pairs {
			keys = append(keys, p.Key)
		}
		w.haunts.add(keys...)
	case tikvrpc.CmdRawBatchDelete:
		w.haunts.add(req.RawBatchDelete().Keys...)
	case tikvrpc.CmdRawDeleteRange:
		r := req.RawDeleteRange()
		w.haunts.addRange(string(r.StartKey), string(r.EndKey))
	}
	return resp, err
}

// haunts are the keys of changes that may still be executed. Safe for concurrent use.
type haunts struct {
	age time.Duration // set before use

	some atomic.Bool // there are any: read without mu where all is well
	mu   sync.Mutex  // guards what follows
	keys map[string]int64
	runs []hauntedRun
}

// hauntedRun is [from, to), until a time of Boottime.
type hauntedRun struct {
	from, to string
	until    int64
}

func newHaunts() *haunts { return &haunts{age: hauntTime, keys: map[string]int64{}} }

func (h *haunts) add(keys ...[]byte) {
	until := kvstore.Boottime() + int64(h.age)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range keys {
		h.keys[string(k)] = until
	}
	h.some.Store(true)
}

func (h *haunts) addRange(from, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs = append(h.runs, hauntedRun{from, to, kvstore.Boottime() + int64(h.age)})
	h.some.Store(true)
}

// until is when the last ghost of the keys in [from, to) has gone; 0: there is none.
func (h *haunts) until(from, to string) (until int64) {
	if !h.some.Load() {
		return 0
	}
	now := kvstore.Boottime()
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, u := range h.keys {
		switch {
		case u <= now:
			delete(h.keys, k)
		case k >= from && k < to:
			until = max(until, u)
		}
	}
	h.runs = slices.DeleteFunc(h.runs, func(r hauntedRun) bool { return r.until <= now })
	for _, r := range h.runs {
		if r.from < to && from < r.to {
			until = max(until, r.until)
		}
	}
	h.some.Store(len(h.keys)+len(h.runs) > 0)
	return until
}

// wait returns when none of the operations' blocks is haunted, or says how the context
// ended.
func (h *haunts) wait(ctx context.Context, ops []*kvstore.Op) error {
	for _, op := range ops {
		if !h.some.Load() {
			return nil
		}
		from, to := blocksFrom(op.Key.Layer, op.Key.Number, uint64(max(op.Count, 1)))
		for {
			until := h.until(string(from), string(to))
			if until == 0 {
				break
			}
			if err := pause(ctx, time.Duration(until-kvstore.Boottime())); err != nil {
				return err
			}
		}
	}
	return nil
}

// pause waits, or says how the context ended.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
