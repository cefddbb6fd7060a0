package chain

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestDownSaysWhyItWaits: a step of Down that takes long is told of, with the reason
// that the daemon gives, though nobody sees the steps themselves.
func TestDownSaysWhyItWaits(t *testing.T) {
	for call, what := range map[string]string{"unmount": "waiting for the unmount of ", "umount": "/mnt/"} {
		t.Run(call, func(t *testing.T) {
			f := newFake()
			c, req := start(t, f)
			if _, err := c.Up(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			c.patience = time.Millisecond
			f.why = "closing vol: no answer from server 1"
			told := make(chan struct{})
			f.hangs = map[string]chan struct{}{call: told}
			var said string
			c.Notice = func(format string, args ...any) {
				if line := fmt.Sprintf(format, args...); said == "" && strings.Contains(line, what) {
					said = line
					close(told)
				}
			}
			done := make(chan error, 1)
			go func() {
				_, err := c.Down(t.Context(), req.Name, "")
				done <- err
			}()
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Down waits without a word")
			}
			if !strings.HasSuffix(said, f.why) {
				t.Errorf("it said %q, want the reason %q", said, f.why)
			}
		})
	}
}
