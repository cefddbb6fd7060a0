package bench

import (
	"encoding/json"
	"fmt"
	"os"
)

// publish prints the tables and writes the files that were asked for.
func (b *bench) publish() error {
	b.show.clear()
	r := b.report
	fmt.Fprintf(b.opt.Out, "kvbfs %s. %s\n", r.Version, r.Headline())
	for _, t := range r.Tables() {
		fmt.Fprintf(b.opt.Out, "\n%s", t.Text())
	}
	if len(r.Skipped) > 0 {
		fmt.Fprintln(b.opt.Out)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(b.opt.Out, "skipped: %s\n", s)
	}
	if b.opt.JSON != "" {
		text, err := json.MarshalIndent(r, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.opt.JSON, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if b.opt.HTML != "" {
		return os.WriteFile(b.opt.HTML, []byte(r.HTML()), 0o644)
	}
	return nil
}
