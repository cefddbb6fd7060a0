package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// serveMethods serves methods on a socket of the test's own.
func serveMethods(t testing.TB, methods map[string]method) Mount {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := listen(path, methods, func(format string, args ...any) { t.Logf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return Mount{Dir: "/mnt", PID: os.Getpid(), Socket: path}
}

func failing(err error) map[string]method {
	return map[string]method{"fail": func(context.Context, json.RawMessage, func(Progress)) (any, error) { return nil, err }}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	for _, s := range sentinels {
		m := serveMethods(t, failing(fmt.Errorf("volume %s: %w (held by h)", "a", s.err)))
		err := Call(t.Context(), m, "fail", nil, nil)
		if !errors.Is(err, s.err) {
			t.Errorf("%s: errors.Is lost across the socket: %v", s.name, err)
		}
		if want := fmt.Sprintf("volume a: %v (held by h)", s.err); err == nil || err.Error() != want {
			t.Errorf("%s: text %q, want %q", s.name, err, want)
		}
		for _, other := range sentinels {
			if other.err != s.err && errors.Is(err, other.err) && !errors.Is(s.err, other.err) {
				t.Errorf("%s became %s too", s.name, other.name)
			}
		}
	}
	m := serveMethods(t, failing(errors.Join(pool.ErrHeld, &kvstore.OpError{Op: "read", Err: kvstore.ErrTimeout})))
	if err := Call(t.Context(), m, "fail", nil, nil); !errors.Is(err, pool.ErrHeld) || !errors.Is(err, kvstore.ErrTimeout) {
		t.Errorf("two sentinels in one error: %v", err)
	}
	if err := Call(t.Context(), m, "nonsense", nil, nil); !errors.Is(err, ErrMethod) {
		t.Errorf("unknown method: %v", err)
	}
	m = serveMethods(t, failing(errors.New("")))
	if err := Call(t.Context(), m, "fail", nil, nil); err == nil {
		t.Error("an error with an empty text became success")
	}
}

// fakeVolumes has one volume and remembers what it was asked.
type fakeVolumes struct{ asked []string }

func (f *fakeVolumes) note(format string, args ...any) {
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
}
func (f *fakeVolumes) Close(context.Context) error { return nil }
func (f *fakeVolumes) List(context.Context) ([]VolumeInfo, error) {
	return []VolumeInfo{{Name: "a", Size: 1 << 40, Allocated: -1, Holder: &HolderInfo{Host: "h", PID: 7}}}, nil
}
func (f *fakeVolumes) Info(_ context.Context, name string) (VolumeInfo, error) {
	if name != "a" {
		return VolumeInfo{}, fmt.Errorf("%w: %s", pool.ErrNoVolume, name)
	}
	return VolumeInfo{Name: "a", Layers: []string{"00c0ffee"}}, nil
}
func (f *fakeVolumes) Create(_ context.Context, name string, size int64) error {
	f.note("create %s %d", name, size)
	return nil
}
func (f *fakeVolumes) Resize(_ context.Context, name string, size int64, shrink bool) error {
	f.note("resize %s %d %v", name, size, shrink)
	if !shrink {
		return volume.ErrShrink
	}
	return nil
}
func (f *fakeVolumes) Remove(_ context.Context, name string, progress func(done, total int64)) error {
	for i := range int64(5) {
		progress(i+1, 5)
	}
	f.note("remove %s", name)
	return nil
}
func (f *fakeVolumes) Scrub(_ context.Context, p ScrubParams, progress func(Progress)) (volume.Scrub, error) {
	f.note("scrub %s %d %v", p.Name, p.Rate, p.Restart)
	progress(Progress{Text: "going on"})
	return volume.Scrub{Volume: p.Name, Damage: volume.Damage{Lost: 3}}, nil
}

func (f *fakeVolumes) Break(context.Context, string, bool) error { return nil }

func (f *fakeVolumes) Where(_ context.Context, name string, off int64) (PlaceInfo, error) {
	return PlaceInfo{Volume: name, Offset: off, CRC: "0badcafe", Stored: true}, nil
}

func TestVolumeMethods(t *testing.T) {
	fake := &fakeVolumes{}
	m := serveMethods(t, volumeMethods(fake,
		func(name string) { fake.note("resized %s", name) },
		func(name string, d time.Duration) { fake.note("timeout %s %v", name, d) }))
	r, ctx := Remote{m}, t.Context()
	if list, err := r.List(ctx); err != nil || len(list) != 1 || list[0].Size != 1<<40 || list[0].Allocated != -1 || list[0].Holder.PID != 7 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if _, err := r.Info(ctx, "b"); !errors.Is(err, pool.ErrNoVolume) {
		t.Errorf("info of a missing volume: %v", err)
	}
	if p, err := r.Where(ctx, "a", 1<<50); err != nil || p.Offset != 1<<50 || p.CRC != "0badcafe" {
		t.Errorf("where: %+v, %v", p, err)
	}
	var done, total int64
	err := errors.Join(r.Create(ctx, "b", 4096), r.Resize(ctx, "b", 1, true), r.SetTimeout(ctx, "a", 1500*time.Millisecond),
		r.Remove(ctx, "b", func(d, n int64) { done, total = d, n }))
	if err != nil {
		t.Error(err)
	}
	if done != 5 || total != 5 {
		t.Errorf("the last progress was %d of %d, want 5 of 5", done, total)
	}
	if err := r.Resize(ctx, "b", 1, false); !errors.Is(err, volume.ErrShrink) {
		t.Errorf("resize: %v", err)
	}
	if err := r.SetTimeout(ctx, "b", 0); !errors.Is(err, pool.ErrNoVolume) {
		t.Errorf("set on a missing volume: %v", err)
	}
	text := ""
	if s, err := r.Scrub(ctx, ScrubParams{"a", 1 << 20, true}, func(p Progress) { text = p.Text }); err != nil || s.Volume != "a" || s.Lost != 3 || text != "going on" {
		t.Errorf("scrub: %+v, %v, %q", s, err, text)
	}
	want := "create b 4096; resized b; resize b 1 true; resized b; timeout a 1.5s; remove b; resized b; resize b 1 false; scrub a 1048576 true"
	if got := strings.Join(fake.asked, "; "); got != want {
		t.Errorf("asked: %s\nwant:  %s", got, want)
	}
}

func TestCallOnDeadOrStuckDaemon(t *testing.T) {
	m := Mount{Socket: filepath.Join(t.TempDir(), "none.sock")}
	if err := Call(t.Context(), m, "status", nil, nil); !errors.Is(err, ErrNotAnswering) {
		t.Errorf("no socket: %v", err)
	}
	// A stopped process: the kernel takes the connection, nobody answers.
	path := filepath.Join(t.TempDir(), "stuck.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = Call(ctx, Mount{Socket: path}, "status", nil, nil)
	if !errors.Is(err, ErrNotAnswering) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stuck: %v", err)
	}
}

// A caller who hangs up ends its call, and close waits for no one else.
func TestCallerHangsUp(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	m := serveMethods(t, map[string]method{"wait": func(ctx context.Context, _ json.RawMessage, _ func(Progress)) (any, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := Call(ctx, m, "wait", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the call goes on although its caller left")
	}
}

func TestPanicInMethod(t *testing.T) {
	m := serveMethods(t, map[string]method{"boom": func(context.Context, json.RawMessage, func(Progress)) (any, error) { panic("planted") }})
	for range 2 { // the daemon lives on
		if err := Call(t.Context(), m, "boom", nil, nil); err == nil || !strings.Contains(err.Error(), "planted") || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("%v", err)
		}
	}
}

func TestBadRequests(t *testing.T) {
	m := serveMethods(t, volumeMethods(&fakeVolumes{}, func(string) {}, func(string, time.Duration) {}))
	if err := Call(t.Context(), m, "info", []int{1}, nil); !errors.Is(err, stack.ErrInput) {
		t.Errorf("params of another shape: %v", err)
	}
	for _, raw := range []string{"nonsense\n", "{}\n", "\n", strings.Repeat("x", 2*maxRequest) + "\n", `{"method":"list"}`} {
		conn, err := net.Dial("unix", m.Socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(raw))
		conn.(*net.UnixConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 1<<16)
		if _, err := conn.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("no answer to %.20q", raw)
		}
		conn.Close()
	}
	if _, err := (Remote{m}).List(t.Context()); err != nil {
		t.Errorf("after bad requests: %v", err)
	}
}

func TestSocketMode(t *testing.T) {
	m := serveMethods(t, nil)
	fi, err := os.Stat(m.Socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want 0600", fi.Mode(), err)
	}
}

// Every sentinel of the layers below has a name on the wire.
func TestSentinelNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sentinels {
		if seen[s.name] {
			t.Errorf("%s twice", s.name)
		}
		seen[s.name] = true
	}
	for _, err := range []error{fusefs.ErrBusy, volume.ErrInUse, pool.ErrHeld, kvstore.ErrFull} {
		if len(kindsOf(err)) == 0 {
			t.Errorf("%v has no name", err)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	m := serveMethods(b, volumeMethods(&fakeVolumes{}, func(string) {}, func(string, time.Duration) {}))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (Remote{m}).Info(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
}
