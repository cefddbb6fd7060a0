package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

// Widths of the table in characters: it fits 80 columns with two stores.
const (
	labelWidth = 38
	cellWidth  = 19
)

// cell is one result.
type cell struct {
	Text  string  `json:"text"`
	Value float64 `json:"value,omitempty"`
	Unit  string  `json:"unit,omitempty"`
	Note  string  `json:"note,omitempty"`
}

// report prints as the demo goes, or collects for JSON.
type report struct {
	out    io.Writer
	notify io.Writer // terminal for progress, or nil
	json   bool
	all    summary
	titles []string
	begin  time.Time
}

// summary is the JSON form.
type summary struct {
	Way     string                     `json:"way"`
	Tree    treeSummary                `json:"tree"`
	Results map[string]map[string]cell `json:"results"` // by row, by store
	Swept   *scratch.Swept             `json:"cleaned_up,omitempty"`
	Keep    []string                   `json:"keep,omitempty"` // how to end what was kept
	Seconds float64                    `json:"seconds"`
}

type treeSummary struct {
	From  string `json:"from"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

func newReport(opt Options) *report {
	r := &report{out: opt.Out, notify: opt.Notify, json: opt.JSON, begin: time.Now()}
	r.all.Results = map[string]map[string]cell{}
	return r
}

// progress shows what is going on, in one line that the next output replaces.
func (r *report) progress(what string) {
	if r.notify != nil {
		fmt.Fprintf(r.notify, "\r\x1b[K%s ...", what)
	}
}

func (r *report) clear() {
	if r.notify != nil {
		fmt.Fprint(r.notify, "\r\x1b[K")
	}
}

func (r *report) printf(format string, args ...any) {
	r.clear()
	if !r.json {
		fmt.Fprintf(r.out, format, args...)
	}
}

// head prints what follows.
func (r *report) head(d *demo) {
	r.all.Way = d.way.name()
	r.all.Tree = treeSummary{d.tree.from, d.tree.files, d.tree.bytes}
	r.printf("kvbfs demo: %s, in %s\n", d.way.name(), d.s.Dir)
	r.printf("a tree of %s files, %.0f MB, from %s\n", thousands(int64(d.tree.files)), float64(d.tree.bytes)/1e6, d.tree.from)
	line := strings.Repeat(" ", labelWidth)
	without := d.opt.Only == ""
	for _, c := range d.columns {
		r.titles = append(r.titles, c.title)
		line += pad(c.title)
		without = without && c.server == nil
	}
	if without {
		r.printf("memcached is not installed: the embedded store only\n")
	}
	r.printf("\n%s\n", strings.TrimRight(line, " "))
}

func pad(s string) string {
	return s + strings.Repeat(" ", max(1, cellWidth-utf8.RuneCountInString(s)))
}

// row prints one step's results; a note goes below them.
func (r *report) row(st step, cells []cell) {
	line := st.label + strings.Repeat(" ", max(1, labelWidth-utf8.RuneCountInString(st.label)))
	var notes []string
	by := map[string]cell{}
	noted := false
	for i, c := range cells {
		line += pad(c.Text)
		notes = append(notes, c.Note)
		noted = noted || c.Note != ""
		by[r.titles[i]] = c
	}
	r.all.Results[st.key] = by
	r.printf("%s\n", strings.TrimRight(line, " "))
	if !noted {
		return
	}
	below := "  "
	if len(notes) > 1 && utf8.RuneCountInString(notes[len(notes)-1]) < cellWidth {
		below = strings.Repeat(" ", labelWidth)
		for _, n := range notes {
			below += pad(n)
		}
	} else {
		below += strings.Join(notes, "")
	}
	r.printf("%s\n", strings.TrimRight(below, " "))
}

// done says what was cleaned up and how long all of it took.
func (r *report) done(n scratch.Swept, took time.Duration) {
	r.printf("\n%.1f s in all; cleaned up: %s\n", took.Seconds(), n)
	r.all.Swept = &n
	r.emit()
}

// broken ends the table when a step failed; the error itself is the caller's.
func (r *report) broken(n scratch.Swept) { r.printf("cleaned up: %s\n", n) }

// kept says how to go on after --keep.
func (r *report) kept(lines []string) {
	r.printf("\nkept, as asked. To look around, and to end it:\n  %s\n", strings.Join(lines, "\n  "))
	r.all.Keep = lines
	r.emit()
}

func (r *report) emit() {
	if !r.json {
		return
	}
	r.all.Seconds = time.Since(r.begin).Seconds()
	enc := json.NewEncoder(r.out)
	enc.SetIndent("", "  ")
	enc.Encode(r.all)
}
