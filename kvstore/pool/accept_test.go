package pool

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// TestAcceptLost: a pool with an emptied server opens for looking only, which
// changes nothing; after the consent it opens here and on machines that remember
// the old sentinel, its records are on every server, and each volume is marked.
func TestAcceptLost(t *testing.T) {
	for victim := range 3 {
		ctx := t.Context()
		st := mem.New(mem.Config{Servers: 3})
		here, there := Options{URL: "test://abc", StateDir: t.TempDir()}, Options{URL: "test://abc", StateDir: t.TempDir()}
		servers := func() *rig { return newRig(st, "a:1", "b:1", "c:1") }
		p := open(t, servers(), here)
		makeReady(t, p, "v")
		makeReady(t, p, "w")
		open(t, servers(), there)
		uuid := p.UUID()
		st.Forget(victim)
		control := st.Counters().Control
		looking := here
		looking.Damaged = true
		p = open(t, servers(), looking)
		if got := p.Lost(); len(got) != 1 || got[0] != victim {
			t.Fatalf("lost: %v", got)
		}
		if v, err := p.Volume(ctx, "v"); err != nil || v.Unaccepted {
			t.Fatalf("%+v, %v", v, err)
		}
		list, err := p.Volumes(ctx)
		if err != nil || len(list) != 2 {
			t.Fatal(list, err)
		}
		for _, name := range []string{p.poolName(), p.sentinelName(), p.catalogueName()} {
			if _, err := st.Control().Get(ctx, victim, name); err == nil {
				t.Errorf("looking wrote %s", name)
			}
		}
		if st.Counters().Control == control {
			t.Fatal("nothing was asked")
		}
		for _, opt := range []Options{here, there} {
			_, err = Open(ctx, servers(), opt)
			wantErr(t, err, ErrForgotten)
			if !strings.Contains(err.Error(), "kvbfs volume repair NAME") {
				t.Errorf("what to do is not said: %v", err)
			}
		}
		if err := p.AcceptLost(ctx); err != nil {
			t.Fatal(err)
		}
		for _, opt := range []Options{here, there, here} {
			p = open(t, servers(), opt)
			if err := p.CheckSentinels(ctx); err != nil || p.UUID() != uuid || len(p.Lost()) != 0 {
				t.Fatal(err)
			}
			for _, name := range []string{"v", "w"} {
				if v, err := p.Volume(ctx, name); err != nil || !v.Damaged || !v.Unaccepted {
					t.Errorf("%+v, %v", v, err)
				}
			}
		}
		for i := range 3 {
			v, _ := p.Volume(ctx, "v")
			for _, name := range []string{p.poolName(), p.volumeName(v.UUID)} {
				if _, err := st.Control().Get(ctx, i, name); err != nil {
					t.Errorf("server %d: %v", i, err)
				}
			}
		}
		// A second loss is one again.
		st.Forget((victim + 1) % 3)
		_, err = Open(ctx, servers(), there)
		wantErr(t, err, ErrForgotten)
	}
}

// TestInterruptedConsent: a crash before the pool record is written leaves the
// pool refused, and the consent can be given again.
func TestInterruptedConsent(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 2})
	opt := Options{URL: "test://ab", StateDir: t.TempDir()}
	servers := func() *rig { return newRig(st, "a:1", "b:1") }
	makeReady(t, open(t, servers(), opt), "v")
	st.Forget(1)
	looking := opt
	looking.Damaged = true
	p := open(t, servers(), looking)
	if _, err := p.placeSentinel(ctx, 1); err != nil { // as far as the crash lets it
		t.Fatal(err)
	}
	_, err := Open(ctx, servers(), opt)
	wantErr(t, err, ErrForgotten)
	p = open(t, servers(), looking)
	if err := errors.Join(p.AcceptLost(ctx), open(t, servers(), opt).CheckSentinels(ctx)); err != nil {
		t.Fatal(err)
	}
}

func TestConsents(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 2})
	p := open(t, st, Options{})
	makeReady(t, p, "v")
	v, err := p.Volume(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(maxConsents + 3) {
		if err := p.AddConsent(ctx, v.UUID, Consent{Time: time.Now().UTC(), Lost: i, Host: strings.Repeat("h", 300)}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := p.Consents(ctx, v.UUID)
	if err != nil || len(list) != maxConsents || list[0].Lost != 3 || list[maxConsents-1].Lost != maxConsents+2 {
		t.Fatal(len(list), err)
	}
	if _, err := p.Update(ctx, "v", func(v *Volume) error { v.State = Removing; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.ForgetVolume(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	if list, err := p.Consents(ctx, v.UUID); err != nil || len(list) != 0 {
		t.Error("kept after the volume was removed", list, err)
	}
}

// TestConsentsCorrupt: a list of consents that no server has intact is begun anew.
func TestConsentsCorrupt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, servers := range []int{1, 2} {
		p := open(t, mem.New(mem.Config{Servers: servers}), Options{})
		makeReady(t, p, "v")
		v, err := p.Volume(ctx, "v")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.AddConsent(ctx, v.UUID, Consent{Time: time.Now().UTC(), Lost: 1}); err != nil {
			t.Fatal(err)
		}
		name := p.consentsName(v.UUID)
		for i := range servers {
			rec, err := p.ctl.Get(ctx, i, name)
			if err != nil {
				t.Fatal(err)
			}
			bad := bytes.Clone(rec.Value)
			bad[len(bad)-1] ^= 1
			if err := p.ctl.Swap(ctx, i, name, rec, bad); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.AddConsent(ctx, v.UUID, Consent{Time: time.Now().UTC(), Lost: 2}); err != nil {
			t.Fatalf("%d servers: %v", servers, err)
		}
		if list, err := p.Consents(ctx, v.UUID); err != nil || len(list) != 1 || list[0].Lost != 2 {
			t.Errorf("%d servers: %+v, %v", servers, list, err)
		}
	}
}
