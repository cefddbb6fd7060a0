package losetup

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStill: a device that got another file meanwhile is left alone.
func TestStill(t *testing.T) {
	needLoop(t)
	d := mustAttach(t, newImage(t), Options{})
	number, err := numberOf(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := still(d, number); err != nil {
		t.Error(err)
	}
	another, later := d, d
	another.Backing += "-before"
	another.seq = 0 // as kernels before 5.15 have it
	later.seq++
	befores := []Device{another}
	if d.seq != 0 {
		befores = append(befores, later)
	}
	for _, before := range befores {
		if err := still(before, number); !errors.Is(err, ErrNotAttached) {
			t.Errorf("with another file: %v, want ErrNotAttached", err)
		}
		if reused, err := waitGone(t.Context(), before, number); !reused || err != nil {
			t.Errorf("waiting for a device that is another's already: %v, %v", reused, err)
		}
	}
	if err := still(d, number); err != nil {
		t.Errorf("it was not left alone: %v", err)
	}
	if err := Detach(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := still(d, number); !errors.Is(err, ErrNotAttached) {
		t.Errorf("without a file: %v, want ErrNotAttached", err)
	}
}

// attachAgain attaches a file, detaches it, and attaches then to the same device. It
// returns both attachments.
func attachAgain(t *testing.T, file, then string) (before, after Device) {
	t.Helper()
	image, size, err := openImage(then, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(image)
	for range 20 {
		before = mustAttach(t, file, Options{})
		number, err := numberOf(before.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := Detach(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		after, err = attachTo(t.Context(), number, image, size, then, Options{})
		if err == nil {
			return before, after
		}
		if !tryOther(err) { // else another program was quicker
			t.Fatal(err)
		}
	}
	t.Skip("other programs take each device that is free")
	return before, after
}

// TestDetachOfWhatIsGone: between a look at a device and its detach somebody else
// detached it and attached another file, or the same one. That is left alone.
func TestDetachOfWhatIsGone(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	for name, then := range map[string]string{"another file": newImage(t), "the same file": file} {
		t.Run(name, func(t *testing.T) {
			before, after := attachAgain(t, file, then)
			if then == file && before.seq == 0 {
				t.Skip("the kernel does not number attachments")
			}
			if err := Detach(t.Context(), before); !errors.Is(err, ErrNotAttached) {
				t.Errorf("Detach: %v, want ErrNotAttached", err)
			}
			if err := DetachLater(before); !errors.Is(err, ErrNotAttached) {
				t.Errorf("DetachLater: %v, want ErrNotAttached", err)
			}
			if now, err := Get(after.Path); err != nil || now != after {
				t.Errorf("it was not left alone: %+v, %v; was %+v", now, err, after)
			}
			held, err := unix.Open(after.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			err = Detach(t.Context(), before)
			unix.Close(held)
			if !errors.Is(err, ErrNotAttached) {
				t.Errorf("Detach while the other one is in use: %v, want ErrNotAttached", err)
			}
			if err := Detach(t.Context(), after); err != nil {
				t.Error(err)
			}
		})
	}
}
