package main

import (
	"fmt"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

// document is a file with blocks that are written from results.
type document struct {
	path   string
	blocks map[string]func(r *result.Report) string
}

var documents = []document{
	{"README.md", map[string]func(*result.Report) string{"bench": readmeBlock}},
	{"docs/performance.md", map[string]func(*result.Report) string{"bench": fullBlock, "peers": peersBlock, "curves": fullBlock}},
}

// update writes the blocks of a document anew whose results are there.
func (in inputs) update(doc document, text string) (string, error) {
	for name, write := range doc.blocks {
		before, after, err := around(text, name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", doc.path, err)
		}
		if r := in.of(name); r != nil {
			text = before + write(r) + after
		}
	}
	return text, nil
}

// around cuts a text at the lines that mark a block; the marks belong to the parts
// that stay.
func around(text, name string) (before, after string, err error) {
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->\n"
	if strings.Count(text, begin) != 1 || strings.Count(text, end) != 1 {
		return "", "", fmt.Errorf("the lines %q and %q must stand there once each", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	i, j := strings.Index(text, begin)+len(begin), strings.Index(text, end)
	if j < i {
		return "", "", fmt.Errorf("block %s ends before it begins", name)
	}
	return text[:i], text[j:], nil
}

// readmeBlock is the first screen: four figures and two drawings.
func readmeBlock(r *result.Report) string {
	t := result.Table{Head: []string{"4 KiB, many in flight"}}
	for _, tr := range r.Transports() {
		t.Head = append(t.Head, "over "+result.TransportTitle(tr), "of the bound")
	}
	w := wide(r)
	for _, place := range []string{result.File, result.Loop} {
		for _, kind := range []string{"randread", "randwrite"} {
			work := w(kind, 4096, 32)
			cells := []string{map[string]string{result.File: "image", result.Loop: "loop device"}[place] + ", " + map[string]string{"randread": "random reads", "randwrite": "random writes"}[kind]}
			for _, tr := range r.Transports() {
				row := r.Find(result.Kvbfs, tr, place, work)
				if row == nil {
					cells = append(cells, "-", "-")
					continue
				}
				share := "-"
				if e, ok := r.Efficiency(*row); ok {
					share = fmt.Sprintf("%.2f", e)
				}
				cells = append(cells, fmt.Sprintf("**%s**/s", result.Thousands(row.Median.IOPS)), share)
			}
			t.Rows = append(t.Rows, cells)
		}
	}
	return t.Markdown() + "\n" + r.Headline() + " The bound adds the time of FUSE (with a store that keeps nothing) and of\nthe store's own client, both from the same run (`make bench`). [performance](docs/performance.md) has the rest, peers too.\n\n" +
		"![random reads relative to the store's limit](docs/figures/figure-6.svg)\n" +
		"![random writes relative to the store's limit](docs/figures/figure-7.svg)\n"
}

// fullBlock is everything that a report has.
func fullBlock(r *result.Report) string { return block(r, r.Tables()) }

// peersBlock is what the run beside others adds to the one without them.
func peersBlock(r *result.Report) string {
	return block(r, []result.Table{r.PeerTable(), r.GoalTable()})
}

// block writes tables below a line that says where they are from.
func block(r *result.Report, tables []result.Table) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.Headline())
	for _, t := range tables {
		if len(t.Rows) > 0 {
			fmt.Fprintf(&b, "\n**%s**\n\n%s", t.Title, t.Markdown())
		}
	}
	for i, s := range r.Skipped {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "Skipped: %s.\n", s)
	}
	return b.String()
}
