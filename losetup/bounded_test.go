package losetup

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestBounded: a look that hangs is left behind with what it had found.
func TestBounded(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	// Long enough that what is found before it hangs is found, on any machine.
	got, whole := bounded(time.Second, func(found func(string)) {
		found("a")
		<-release
		found("b")
	})
	if !slices.Equal(got, []string{"a"}) || whole {
		t.Errorf("a look that hangs: %v, whole: %v", got, whole)
	}
	got, whole = bounded(time.Hour, func(found func(string)) { found("a"); found("b") })
	if !slices.Equal(got, []string{"a", "b"}) || !whole {
		t.Errorf("a look that ends: %v, whole: %v", got, whole)
	}
}

// A look that takes longer than the limit, but goes on, is waited for.
func TestBoundedIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got, whole := bounded(time.Second, func(found func(string)) {
			for range 10 {
				time.Sleep(900 * time.Millisecond)
				found("")
			}
			found("a")
		})
		if !slices.Equal(got, []string{"a"}) || !whole {
			t.Errorf("a look that takes long: %q", got)
		}
	})
}
