package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows how far something long has come: one line that is written over
// on a terminal, now and then a line else.
type progress struct {
	what   string
	onTerm bool
	every  time.Duration
	last   time.Time
	shown  bool
}

func newProgress(what string) *progress {
	p := &progress{what: what, onTerm: term.IsTerminal(int(os.Stderr.Fd())), every: 10 * time.Second, last: time.Now()}
	if p.onTerm {
		p.every = 100 * time.Millisecond
	}
	return p
}

// update may be called often; it writes seldom.
func (p *progress) update(done, total int64) {
	if time.Since(p.last) < p.every {
		return
	}
	p.last, p.shown = time.Now(), true
	text := fmt.Sprintf("%s: %d blocks", p.what, done)
	if total > 0 {
		text = fmt.Sprintf("%s: %d of %d blocks, %d %%", p.what, done, total, done*100/total)
	}
	if p.onTerm {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", text)
		return
	}
	fmt.Fprintln(os.Stderr, text)
}

// end clears the line.
func (p *progress) end() {
	if p.onTerm && p.shown {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
