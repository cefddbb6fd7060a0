package losetup

import (
	"slices"
	"testing"
	"time"
)

// TestBounded: a look that hangs is left behind with what it had found.
func TestBounded(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	got, whole := bounded(50*time.Millisecond, func(found func(string)) {
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
