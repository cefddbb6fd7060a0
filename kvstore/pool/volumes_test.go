package pool

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

func TestConcurrentUpdates(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 3})
	r := newRig(st)
	first := open(t, r, Options{})
	makeReady(t, first, "v")
	const writers, rounds = 16, 20
	var wg sync.WaitGroup
	for i := range writers {
		p := open(t, newRig(st), Options{})
		wg.Go(func() {
			for n := range rounds {
				if _, err := p.Update(ctx, "v", func(v *Volume) error { v.Size += kvstore.BlockSize; return nil }); err != nil {
					t.Error(err)
				}
				if n == 0 {
					if err := createReady(fmt.Sprintf("w%d", i))(p); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	v, err := first.Volume(ctx, "v")
	if want := int64(1<<20 + writers*rounds*kvstore.BlockSize); err != nil || v.Size != want {
		t.Fatalf("size %d, want %d: an update was lost (%v)", v.Size, want, err)
	}
	list, err := first.Volumes(ctx)
	if err != nil || len(list) != writers+1 {
		t.Fatal(len(list), err)
	}
	for i := range st.Servers() { // copies never go back
		s, err := first.get(ctx, i, first.volumeName(v.UUID), kindVolume)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := decodeVolume(s.head, s.body); err != nil || c.Size != v.Size {
			t.Errorf("server %d has an old copy (%v)", i, err)
		}
	}
}

// Of two creators of one name one wins; the other's Update is refused.
func TestCreatorsRace(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 2})
	for round := range 10 {
		name := fmt.Sprintf("v%d", round)
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for range 6 {
			p := open(t, newRig(st), Options{})
			wg.Go(func() {
				made, err := p.CreateVolume(ctx, name, 1<<20, 1)
				if err == nil {
					var v Volume
					v, err = p.Update(ctx, name, setTo(Ready))
					if err == nil && v.UUID != made.UUID {
						t.Error("Ready was set on somebody else's volume")
					}
				}
				if err != nil && !errors.Is(err, ErrVolumeExists) && !errors.Is(err, ErrNoVolume) {
					t.Error(err)
				}
				if err == nil {
					mu.Lock()
					won++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Fatalf("%d creators of %s succeeded", won, name)
		}
	}
}

func TestLeftoverIsTakenOver(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{})
	r := newRig(st)
	p := open(t, r, Options{})
	old, err := p.CreateVolume(ctx, "v", 1<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	q := open(t, newRig(st), Options{})
	v, err := q.CreateVolume(ctx, "v", 2<<20, 1)
	if err != nil || v.UUID == old.UUID || v.Layers[0].ID == old.Layers[0].ID || v.Size != 2<<20 {
		t.Fatal(v, err)
	}
	_, err = p.Update(ctx, "v", setTo(Ready))
	wantErr(t, err, ErrVolumeExists)
	if _, err := q.Update(ctx, "v", setTo(Ready)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Update(ctx, "v", setTo(Ready)); err != nil { // told once
		t.Fatal(err)
	}
	if _, err := st.Control().Get(ctx, 0, p.volumeName(old.UUID)); !errors.Is(err, kvstore.ErrAbsent) {
		t.Error("the leftover's record is still there")
	}
}

func TestLayerIDsAreTriedUntilOneIsFree(t *testing.T) {
	r := newRig(mem.New(mem.Config{}))
	p := open(t, r, Options{})
	left := 3
	r.hook(func(op, _ string, _ int) error {
		if op == "claim" && left > 0 {
			left--
			return kvstore.ErrExists
		}
		return nil
	}, nil)
	makeReady(t, p, "v")
	if left != 0 || len(r.claimed) != 1 {
		t.Fatal(left, r.claimed)
	}
}

func TestUpdateRefusesNonsense(t *testing.T) {
	ctx := t.Context()
	p := open(t, mem.New(mem.Config{}), Options{})
	makeReady(t, p, "v")
	for what, f := range map[string]func(*Volume){
		"name":       func(v *Volume) { v.Name = "w" },
		"uuid":       func(v *Volume) { v.UUID[0]++ },
		"features":   func(v *Volume) { v.Incompat = 1 },
		"no layers":  func(v *Volume) { v.Layers = nil },
		"state":      func(v *Volume) { v.State = 9 },
		"map height": func(v *Volume) { v.MapHeight = 9 },
	} {
		_, err := p.Update(ctx, "v", func(v *Volume) error { f(v); return nil })
		if !errors.Is(err, kvstore.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := p.Update(ctx, "v", func(v *Volume) error { v.Size = 5; return nil })
	wantErr(t, err, ErrBadSize)
	mine := errors.New("mine")
	_, err = p.Update(ctx, "v", func(v *Volume) error { return mine })
	wantErr(t, err, mine)
	_, err = p.CreateVolume(ctx, "w", 4097, 1)
	wantErr(t, err, ErrBadSize)
	_, err = p.CreateVolume(ctx, "w", 1<<60, 1)
	wantErr(t, err, ErrBadSize)
	_, err = p.CreateVolume(ctx, "../w", 4096, 1)
	wantErr(t, err, ErrBadName)
}

func TestLostAndCorruptVolumeRecords(t *testing.T) {
	ctx := t.Context()
	for _, servers := range []int{1, 2} {
		for _, how := range []string{"lost", "corrupt"} {
			t.Run(fmt.Sprintf("%s of %d", how, servers), func(t *testing.T) {
				st := mem.New(mem.Config{Servers: servers})
				p := open(t, st, Options{})
				v := makeReady(t, p, "v")
				name := p.volumeName(v.UUID)
				rec, err := st.Control().Get(ctx, 0, name)
				if err != nil {
					t.Fatal(err)
				}
				if how == "lost" {
					err = st.Control().Delete(ctx, 0, name)
				} else {
					err = st.Control().Swap(ctx, 0, name, rec, append(rec.Value[:70:70], 1))
				}
				if err != nil {
					t.Fatal(err)
				}
				got, err := p.Volume(ctx, "v")
				list, listErr := p.Volumes(ctx)
				if listErr != nil || len(list) != 1 {
					t.Fatal(list, listErr)
				}
				if servers == 1 {
					wantErr(t, err, kvstore.ErrCorrupt)
					if !strings.Contains(err.Error(), name) || !list[0].Damaged || len(list[0].Layers) != 1 {
						t.Error("the record is not named, or not listed as damaged", list)
					}
					return
				}
				if err != nil || got.UUID != v.UUID || got.State != Ready {
					t.Fatal(got, err)
				}
				if again, err := st.Control().Get(ctx, 0, name); err != nil || string(again.Value) != string(rec.Value) {
					t.Error("it was not put back", err)
				}
			})
		}
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "A9", "0", "a.b_c-d", strings.Repeat("x", 64)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", "_a", "a/b", "a b", "a:b", "ä", "a\x00", strings.Repeat("x", 65), strings.Repeat("x", 100000)} {
		if err := CheckName(bad); !errors.Is(err, ErrBadName) || len(err.Error()) > 400 {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

// FuzzCheckName: a name passes if and only if the documented rule says so.
func FuzzCheckName(f *testing.F) {
	f.Add("vm-1")
	f.Add("../x")
	rule := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 8*maxName { // nothing but its length is different
			return
		}
		if ok := CheckName(s) == nil; ok != rule.MatchString(s) {
			t.Fatalf("%q passes: %v", s, ok)
		}
	})
}

// A creator that says Ready when its name was just taken over learns it, also if
// its record was still there.
func TestReadyAfterTakeover(t *testing.T) {
	ctx := t.Context()
	r := newRig(mem.New(mem.Config{}))
	p, q := open(t, r, Options{}), open(t, newRig(r.Store), Options{})
	v, err := p.CreateVolume(ctx, "v", 1<<20, 1)
	if err != nil || q.Refresh(ctx) != nil {
		t.Fatal(err)
	}
	other := entry{"v", Creating, newID()}
	r.hook(func(op, name string, _ int) error {
		if op != "swap" || name != p.volumeName(v.UUID) {
			return nil
		}
		return q.editCatalogue(ctx, q.table.Load(), func(c *catalogue) (bool, error) { c.put(other); return true, nil })
	}, nil)
	_, err = p.Update(ctx, "v", setTo(Ready))
	wantErr(t, err, ErrNoVolume)
	c, _, err := q.readCatalogue(ctx, q.table.Load())
	if e, _ := c.lookup("v"); err != nil || e != other {
		t.Fatal("the winner's entry was changed", e, err)
	}
}

func TestCopiesNeverGoBack(t *testing.T) {
	ctx := t.Context()
	p := open(t, mem.New(mem.Config{Servers: 2}), Options{})
	v := makeReady(t, p, "v")
	name := p.volumeName(v.UUID)
	old, err := p.get(ctx, 0, name, kindVolume)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Update(ctx, "v", func(v *Volume) error { v.Size *= 2; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.copyTo(ctx, 1, name, old.head, old.raw.Value); err != nil { // a slow writer
		t.Fatal(err)
	}
	if c, err := p.get(ctx, 1, name, kindVolume); err != nil || c.head.revision <= old.head.revision {
		t.Fatal("the copy went back", err)
	}
}
