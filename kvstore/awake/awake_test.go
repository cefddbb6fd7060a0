package awake

import (
	"testing"
	"time"
)

// clock makes time stand still, but for what is added to the result.
func clock(t *testing.T) *time.Duration {
	began, d := time.Now(), new(time.Duration)
	now = func() time.Time { return began.Add(*d) }
	t.Cleanup(func() { now = time.Now })
	return d
}

// looksOf counts how often w looks for what never comes.
func looksOf(way func(func() bool) bool) (n int) {
	if way(func() bool { n++; return false }) {
		panic("nothing was there")
	}
	return n
}

func TestWait(t *testing.T) {
	clock(t)
	var w Wait
	if n := looksOf(w.ForWork); n != 0 {
		t.Errorf("a new wait looked %d times", n)
	}
	w.Slept(time.Millisecond)
	if n := looksOf(w.ForWork); n != 0 {
		t.Errorf("after a long sleep it looked %d times", n)
	}
	for range 10 {
		w.Slept(10 * time.Microsecond)
	}
	if w.looks != maxLooks {
		t.Errorf("after short sleeps it would look %d times, want %d", w.looks, maxLooks)
	}
	for want := maxLooks; want > 0; want /= 2 {
		if n := looksOf(w.ForWork); n != want {
			t.Errorf("it looked %d times in vain, want %d", n, want)
		}
	}
	w.Slept(10 * time.Microsecond)
	n := 0
	if !w.ForWork(func() bool { n++; return n == 3 }) || n != 3 || w.looks != 12 {
		t.Errorf("found after %d looks, will look %d times, want 3 and 12", n, w.looks)
	}
	if n := working.Load(); n != 0 {
		t.Errorf("%d at work after all", n)
	}
}

func TestAtWork(t *testing.T) {
	clock(t)
	w := Wait{looks: maxLooks}
	for range half {
		Begin()
		defer End()
	}
	if n := looksOf(w.AtWork); n != maxLooks {
		t.Errorf("with half of the CPUs at work it looked %d times, want %d", n, maxLooks)
	}
	w.looks = maxLooks
	other := Wait{looks: 1}
	other.ForWork(func() bool {
		if n := looksOf(w.AtWork); n != 0 {
			t.Errorf("while another one stayed awake it looked %d times", n)
		}
		return false
	})
	w.looks = maxLooks
	Begin()
	for w.looks > 0 {
		if n := looksOf(w.AtWork); n != 0 {
			t.Fatalf("with more at work it looked %d times", n)
		}
	}
	End()
	w.looks = maxLooks
	if w.AtWork(func() bool { Begin(); return false }) {
		t.Error("found what was not there")
	}
	End()
	if w.looks != maxLooks/2 {
		t.Errorf("another one began: will look %d times, want %d", w.looks, maxLooks/2)
	}
}

// TestOthersWantTheCPU: whoever was kept from the CPU while it stayed awake sleeps the
// next times, the longer the more often that happens.
func TestOthersWantTheCPU(t *testing.T) {
	began, passed := time.Now(), time.Duration(0)
	yield := 2 * taken // from one look at the clock to the next
	now = func() time.Time { passed += yield; return began.Add(passed) }
	t.Cleanup(func() { now = time.Now })
	w := Wait{looks: maxLooks}
	for _, want := range []int{minRest, 2 * minRest, 4 * minRest} {
		n := 0
		if !w.ForWork(func() bool { n++; return true }) || n != 1 {
			t.Fatalf("looked %d times", n)
		}
		rests := 0
		for w.looks == 0 {
			w.Slept(10 * time.Microsecond)
			rests++
		}
		if rests != want+1 {
			t.Errorf("slept %d times before it looked again, want %d", rests, want+1)
		}
	}
	yield = short // each look is late, but none by much
	w.looks = maxLooks
	if n := looksOf(w.ForWork); n == 0 || n > 4 || w.looks != maxLooks/2 {
		t.Errorf("looked %d times within 200 us, and will %d times", n, w.looks)
	}
	yield = 0
	for range 2000 {
		w.looks = 1
		w.ForWork(func() bool { return true })
	}
	if w.last >= minRest {
		t.Errorf("with a free CPU it would still sleep %d times", w.last)
	}
}

func TestAnswer(t *testing.T) {
	var w Wait
	var waits []bool
	receive := func(wait bool) bool { waits = append(waits, wait); return wait }
	if !w.Answer(receive) || len(waits) != 1 || !waits[0] {
		t.Errorf("a new wait received with %v, want one that sleeps", waits)
	}
	w.looks = 1
	if waits = nil; !w.Answer(func(wait bool) bool { waits = append(waits, wait); return true }) || len(waits) != 1 || waits[0] {
		t.Errorf("received with %v, want one look", waits)
	}
	w = Wait{}
	if w.Answer(func(bool) bool { return false }) || w.looks != 0 {
		t.Error("nothing came, and it would look the next time")
	}
}

// TestLongLook: how long a look takes says nothing of who wants the CPU.
func TestLongLook(t *testing.T) {
	passed := clock(t)
	w := Wait{looks: 8}
	if !w.ForWork(func() bool { *passed += 2 * taken; return true }) || w.looks != 12 || w.rest != 0 {
		t.Errorf("will look %d times, after %d that sleep", w.looks, w.rest)
	}
}

func TestLookAllocatesNothing(t *testing.T) {
	w := Wait{looks: maxLooks}
	there := false
	if n := testing.AllocsPerRun(100, func() {
		there = false
		w.ForWork(func() bool { there = !there; return !there })
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
