package house

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dates are the files that write the time of day into records, for people.
var dates = []string{
	"kvstore/pool/copies.go", "kvstore/pool/accept.go", "kvstore/pool/format.go", "kvstore/pool/records.go",
}

var wallClock = regexp.MustCompile(`\.Unix(Nano|Milli|Micro)?\(\)`)

// TestNoWallClockDecides: what waits, retries or expires goes by a monotonic
// clock. A time taken out of time.Time as a number has lost its monotonic part.
func TestNoWallClockDecides(t *testing.T) {
	for _, s := range sources(t) {
		part := strings.SplitN(s.path, "/", 2)[0]
		if s.test || !slices.Contains([]string{"kvstore", "cache", "fusefs", "losetup"}, part) || slices.Contains(dates, s.path) ||
			strings.HasSuffix(s.dir, "test") {
			continue
		}
		if found := wallClock.FindString(s.text); found != "" {
			t.Errorf("%s takes the time of day as a number (%s): if it is compared, a clock that is set would decide", s.path, found)
		}
	}
}
