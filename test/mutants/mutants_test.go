package mutants

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var top = filepath.Join("..", "..")

// few are the mutants that run with every `make test`: the cheapest ones.
var few = map[string]bool{"zeros for a lost block": true, "the buffer is kept after return": true}

// planted are all of them.
func planted() []Mutant { return slices.Concat(All, WriteBack, Leases, Failovers, Mending) }

// TestMutants plants a few bugs, or with KVBFS_MUTANTS=all all of them; any other
// value picks the one of that name.
func TestMutants(t *testing.T) {
	which := os.Getenv("KVBFS_MUTANTS")
	ran := 0
	for _, m := range planted() {
		if which == "" && !few[m.Name] || which != "" && which != "all" && which != m.Name {
			continue
		}
		ran++
		t.Run(m.Name, func(t *testing.T) { m.Catch(t, top) })
	}
	if ran == 0 {
		t.Fatalf("no mutant is called %q", which)
	}
}

// TestApply: each mutant still finds the piece that it changes.
func TestApply(t *testing.T) {
	names := map[string]bool{}
	for _, m := range planted() {
		if names[m.Name] {
			t.Errorf("two mutants are called %q", m.Name)
		}
		names[m.Name] = true
		if _, err := m.overlay(top, t.TempDir()); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
}

// TestSurvivor: a change that is no bug is not called caught.
func TestSurvivor(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the tests of a package")
	}
	m := All[0]
	for _, m = range All {
		if m.Name == "the buffer is kept after return" {
			break
		}
	}
	m.New = m.Old
	if m.caught(t, top) {
		t.Error("a mutant without a bug was caught")
	}
}
