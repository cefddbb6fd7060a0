package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestInterruptedQuestion: a question that nobody answers ends with an interrupt, and an
// answer that comes later, or with it, is none.
func TestInterruptedQuestion(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	in, keyboard := io.Pipe()
	defer keyboard.Close()
	done := make(chan error, 1)
	go func() {
		yes, err := agreed(ctx, in)
		if yes {
			err = errors.New("it takes nothing for yes")
		}
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("without an answer: %v, want %v", err, context.Canceled)
	}
	if yes, err := agreed(ctx, strings.NewReader("y\n")); yes || !errors.Is(err, context.Canceled) {
		t.Errorf("y after the interrupt: %v, %v", yes, err)
	}
	for answer, want := range map[string]bool{"y\n": true, " YES\n": true, "n\n": false, "\n": false, "": false} {
		if yes, err := agreed(t.Context(), strings.NewReader(answer)); yes != want || err != nil {
			t.Errorf("%q: %v, %v, want %v", answer, yes, err, want)
		}
	}
}
