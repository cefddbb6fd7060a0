package bench

import (
	"fmt"
	"io"
	"time"
)

// progress tells what is going on: on a terminal in one line that is written over,
// elsewhere in one line per step and per tenth of the runs.
type progress struct {
	out      io.Writer // nil: silent
	terminal bool

	total, done int
	since       time.Time
	said        int // tenths that were told
}

// begin says how many runs are to come.
func (p *progress) begin(total int) { p.total, p.done, p.said, p.since = total, 0, -1, time.Now() }

// step tells of something that takes a while and is no run.
func (p *progress) step(format string, args ...any) { p.line(fmt.Sprintf(format, args...) + " ...") }

// run tells of the next run.
func (p *progress) run(format string, args ...any) {
	text := fmt.Sprintf("[%d/%d] %s", p.done+1, p.total, fmt.Sprintf(format, args...))
	if p.done > 0 {
		left := time.Since(p.since) / time.Duration(p.done) * time.Duration(p.total-p.done)
		text += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	tenth := 10 * p.done / max(p.total, 1)
	p.done++
	if !p.terminal && tenth == p.said {
		return
	}
	p.said = tenth
	p.line(text)
}

// note tells of something that stays on the screen.
func (p *progress) note(format string, args ...any) {
	if p.out != nil {
		p.clear()
		fmt.Fprintf(p.out, "kvbfs: %s\n", fmt.Sprintf(format, args...))
	}
}

func (p *progress) line(text string) {
	switch {
	case p.out == nil:
	case p.terminal:
		fmt.Fprintf(p.out, "\r\x1b[K%.110s", text)
	default:
		fmt.Fprintln(p.out, text)
	}
}

// clear empties the line that is written over.
func (p *progress) clear() {
	if p.out != nil && p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
