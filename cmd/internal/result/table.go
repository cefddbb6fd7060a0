package result

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"unicode/utf8"
)

// Table is a result for people. The first column is text, the others are figures.
type Table struct {
	Title string
	Note  string // below the table; empty: none
	Head  []string
	Rows  [][]string
}

// Text aligns the columns with spaces.
func (t Table) Text() string {
	width := make([]int, len(t.Head))
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	line := func(row []string) {
		var l strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == 0 {
				l.WriteString("  " + c + pad)
			} else {
				l.WriteString("  " + pad + c)
			}
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	b.WriteString(t.Title + "\n")
	line(t.Head)
	for _, row := range t.Rows {
		line(row)
	}
	if t.Note != "" {
		b.WriteString("  " + t.Note + "\n")
	}
	return b.String()
}

// Markdown writes the table without its title.
func (t Table) Markdown() string {
	var b strings.Builder
	line := func(row []string) { b.WriteString("| " + strings.Join(row, " | ") + " |\n") }
	line(t.Head)
	rule := []string{"---"}
	for range t.Head[1:] {
		rule = append(rule, "---:")
	}
	line(rule)
	for _, row := range t.Rows {
		line(row)
	}
	if t.Note != "" {
		b.WriteString("\n" + t.Note + "\n")
	}
	return b.String()
}

// HTML writes the table with its title as a caption.
func (t Table) HTML() string {
	var b strings.Builder
	b.WriteString("<table><caption>" + html.EscapeString(t.Title) + "</caption>\n<tr>")
	for _, h := range t.Head {
		b.WriteString("<th>" + html.EscapeString(h) + "</th>")
	}
	b.WriteString("</tr>\n")
	for _, row := range t.Rows {
		b.WriteString("<tr>")
		for _, c := range row {
			b.WriteString("<td>" + html.EscapeString(c) + "</td>")
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</table>\n")
	if t.Note != "" {
		b.WriteString("<p class=note>" + html.EscapeString(t.Note) + "</p>\n")
	}
	return b.String()
}

// Thousands spells a rate with thin groups: 12 345.
func Thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

// rate spells what a work reaches: I/Os per second, or bytes where requests are
// large.
func rate(w Work, s Sample) string {
	switch {
	case s.IOPS == 0:
		return "-"
	case w.Block > blockBytes:
		return Thousands(s.Bytes/1e6) + " MB/s"
	}
	return Thousands(s.IOPS)
}

// rateOf spells a rate of I/Os for a work.
func rateOf(w Work, iops float64) string {
	return rate(w, Sample{IOPS: iops, Bytes: iops * float64(w.Block)})
}

func micros(us float64) string {
	switch {
	case us == 0:
		return "-"
	case us < 100:
		return fmt.Sprintf("%.1f", us)
	}
	return Thousands(us)
}

func ratio(v float64, ok bool) string {
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

// mark shows that a row's median is not of quiet runs.
func mark(noisy bool) string {
	if noisy {
		return " *"
	}
	return ""
}

// noisyNote explains the mark, if one of the rows has it.
func noisyNote(any bool) string {
	if any {
		return fmt.Sprintf("* the host took more than %.0f %% of the machine's time in most runs of this row, also when they were repeated.", MaxSteal)
	}
	return ""
}

// TransportTitle spells a transport for people.
func TransportTitle(t string) string {
	switch t {
	case "uring":
		return "io_uring"
	case "dev":
		return "/dev/fuse"
	}
	return t
}

// Headline says where and how the report was made, in one sentence.
func (r *Report) Headline() string {
	m := r.Machine
	how := fmt.Sprintf("Medians of %d alternating rounds", r.Settings.Rounds)
	if r.Settings.Rounds == 1 {
		how = "One round"
	}
	return fmt.Sprintf("%s, %d CPUs (%s), %s, memcached %s; %s. %s of %d s per run, %d MiB per volume, direct I/O, %s.",
		m.Kernel, m.CPUs, orUnknown(m.CPU), m.Fio, orUnknown(strings.TrimPrefix(m.Memcached, "memcached ")), r.Settings.Store,
		how, r.Settings.Seconds, r.Settings.Size>>20, r.Made.Format("2006-01-02"))
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// values returns what the rows have of something, each once, in their order.
func values(rows []Row, get func(Row) (string, bool)) []string {
	var all []string
	for _, r := range rows {
		if v, ok := get(r); ok && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// Transports lists those that kvbfs was measured over.
func (r *Report) Transports() []string {
	return values(r.Rows, func(row Row) (string, bool) { return row.Transport, row.Subject == Kvbfs })
}

// Peers lists the subjects that are not ours.
func (r *Report) Peers() []string {
	return values(r.Rows, func(row Row) (string, bool) {
		return row.Subject, !slices.Contains(Subjects, row.Subject)
	})
}

// WorksAt lists the works that a subject did at a place.
func (r *Report) WorksAt(place string, subject string) []Work {
	var all []Work
	for _, row := range r.Rows {
		if row.Place == place && row.Subject == subject && !slices.Contains(all, row.Work) {
			all = append(all, row.Work)
		}
	}
	return all
}

// Places in the order in which they are shown.
var Places = []string{File, Loop, Device, Ext4, XFS}
