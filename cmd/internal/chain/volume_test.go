package chain

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// rival makes the volume between our look and our create.
type rival struct {
	*fake
	removed bool
	late    func() // ends the run during the create; nil: it goes on
}

func (r *rival) Kvbfs(ctx context.Context, store string, args ...string) error {
	switch strings.Join(args[:min(2, len(args))], " ") {
	case "volume create":
		r.create("vol")
		copy(r.volumes["vol"], "precious")
		if r.late != nil {
			r.late()
			<-ctx.Done() // the child is told to end, and says nothing of use
			return ctx.Err()
		}
		return errors.New("volume vol exists already")
	case "volume rm":
		r.removed = true
	}
	return r.fake.Kvbfs(ctx, store, args...)
}

// Two nodes run `up` at the same time: the one that is second with its create does not
// remove the volume of the first.
func TestUpKeepsAVolumeThatSomebodyElseMade(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	r := &rival{fake: f}
	c.sys = r
	if _, err := c.Up(t.Context(), req); err == nil {
		t.Error("the create failed, and Up did not")
	}
	if left := leftovers(c, f, req); r.removed || !slices.Equal(left, []string{"volume vol"}) {
		t.Errorf("removed=%t, left %v", r.removed, left)
	}
}

// Nor does one that is interrupted and cannot know whose it is: it says so. It waits a
// while for the create to know.
func TestInterruptedUpKeepsAVolumeOfUnknownOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, req := start(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := &rival{fake: f, late: cancel}
		c.sys = r
		begin := time.Now()
		if _, err := c.Up(ctx, req); !errors.Is(err, context.Canceled) {
			t.Errorf("Up: %v", err)
		}
		if d := time.Since(begin); d != createGrace {
			t.Errorf("the create was ended after %v", d)
		}
		if left := leftovers(c, f, req); r.removed || !slices.Equal(left, []string{"volume vol"}) {
			t.Errorf("removed=%t, left %v", r.removed, left)
		}
		if said := strings.Join(f.said, "\n"); !strings.Contains(said, "volume vol is left") || !strings.Contains(said, "kvbfs volume rm vol") {
			t.Errorf("it says %q", said)
		}
	})
}

// replaced is a volume that somebody removed and made anew while the run went on.
type replaced struct{ *fake }

func (r *replaced) Mount(context.Context, string, string, filesystem) error {
	r.create("vol")
	return errInjected
}

func TestUpKeepsAVolumeThatWasReplaced(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	c.sys = &replaced{f}
	if _, err := c.Up(t.Context(), req); !errors.Is(err, errInjected) {
		t.Errorf("Up: %v", err)
	}
	if left := leftovers(c, f, req); !slices.Equal(left, []string{"volume vol"}) {
		t.Errorf("left %v", left)
	}
}
