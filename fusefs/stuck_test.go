package fusefs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestStuckIsTold: requests that do not end are told of once, and when they did.
func TestStuckIsTold(t *testing.T) {
	var f inflight
	f.init()
	var lines []string
	log := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	l := stuckLog{limit: 10 * time.Millisecond}
	slot := f.begin()
	for len(lines) == 0 {
		l.tell(&f, log)
		time.Sleep(time.Millisecond)
	}
	l.tell(&f, log) // not again at once
	f.end(slot)
	l.tell(&f, log)
	l.tell(&f, log)
	if len(lines) != 2 || !strings.Contains(lines[0], "1 requests in flight") || !strings.Contains(lines[1], "again") {
		t.Errorf("told: %q", lines)
	}
}

// TestBounded: a look into /proc that hangs is left behind, with what it found and
// a word that this was not all.
func TestBounded(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	// Long enough that what is found before it hangs is found, on any machine.
	got := bounded(time.Second, func(found func(string)) { found("a"); <-release })
	if len(got) != 2 || got[0] != "a" {
		t.Errorf("a look that hangs: %q", got)
	}
	if got := bounded(time.Hour, func(found func(string)) { found("a") }); !slices.Equal(got, []string{"a"}) {
		t.Errorf("a look that ends: %q", got)
	}
}

// A look that takes longer than the limit, but goes on, is waited for.
func TestBoundedIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := bounded(time.Second, func(found func(string)) {
			for range 10 {
				time.Sleep(900 * time.Millisecond)
				found("")
			}
			found("a")
		})
		if !slices.Equal(got, []string{"a"}) {
			t.Errorf("a look that takes long: %q", got)
		}
	})
}
