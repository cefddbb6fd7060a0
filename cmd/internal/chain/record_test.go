package chain

import (
	"path/filepath"
	"slices"
	"testing"
)

// TestOthersInADirectoryWithSigns: what a pattern would be made of is part of the
// runtime directory's name.
func TestOthersInADirectoryWithSigns(t *testing.T) {
	c, err := newChain(filepath.Join(t.TempDir(), `r[un]*?\`), newFake(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := c.save(&record{Name: name, Dir: "/d"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.others("a", "/d"); !slices.Equal(got, []string{"b"}) {
		t.Errorf("others than a: %v, want b", got)
	}
}
