package fusefs

import (
	"fmt"
	"time"
)

// When the watchdog tells of requests that do not end: what takes longer than the
// first is an outage for whoever waits, and what lasts is told again.
const (
	stuckWarn  = 30 * time.Second
	stuckAgain = time.Minute
	// stuckNamed is how many requests a warning describes.
	stuckNamed = 3
)

// stuckLog is what the watchdog remembers between two looks. Only it uses it.
type stuckLog struct {
	next  int64 // of clock; 0: nothing is told yet
	told  bool
	limit time.Duration // stuckWarn, but for tests
}

// tell logs requests that are stuck, with what they wait for, and that they no
// longer are.
func (l *stuckLog) tell(f *inflight, log func(format string, args ...any)) {
	n, oldest := f.look()
	now := clock()
	switch {
	case oldest < l.limit && l.told:
		log("requests are answered again")
		l.told, l.next = false, 0
	case oldest >= l.limit && now >= l.next:
		l.told, l.next = true, now+int64(stuckAgain)
		for i, w := range f.oldest(stuckNamed, l.limit) {
			if i == 0 {
				log("warning: %d requests in flight, the oldest for %v: %s", n, oldest.Round(time.Second), w)
			} else {
				log("warning: another for %v: %s", (time.Duration(w.AgeMS) * time.Millisecond).Round(time.Second), w)
			}
		}
	}
}

// String describes a request, without its age.
func (w Waiting) String() string {
	if w.Volume == "" {
		return "an open, or a look at names"
	}
	s := fmt.Sprintf("%s of %s", w.What, w.Volume)
	if w.Bytes > 0 {
		s += fmt.Sprintf(" (%d bytes at %d)", w.Bytes, w.Offset)
	}
	if w.WaitsFor != "" {
		s += " waits for " + w.WaitsFor
	}
	return s
}
