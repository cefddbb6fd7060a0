// Command figures turns committed results of the benchmark into drawings and into
// the tables of the documentation:
//
//	go run ./cmd/internal/figures [--dir docs/figures] [--from docs/figures/bench.json] [--top .]
//
// # Data flow
//
// bench.json (kvbfs bench), peers.json (make bench-peers) and curves.json (make
// bench-curves) are read; those that are not there are left out. The drawings go
// beside them. A block of a document, between the lines <!-- NAME:begin --> and
// <!-- NAME:end -->, is written anew from the file of its name; blocks whose file is
// not there stay as they are. Nothing is measured, so the same files give the same
// bytes, and a test compares them with what is committed.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

func main() {
	dir := flag.String("dir", "docs/figures", "directory of the results and the drawings")
	from := flag.String("from", "", "results of kvbfs bench; default: bench.json in the directory")
	top := flag.String("top", ".", "directory of README.md and docs")
	flag.Parse()
	drawn, err := run(*top, *dir, *from)
	if err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
	for _, path := range drawn {
		fmt.Println(path)
	}
}

// run writes documents and drawings, and returns the paths of the latter.
func run(top, dir, from string) (drawn []string, err error) {
	if from == "" {
		from = filepath.Join(dir, "bench.json")
	}
	in, err := load(dir, from)
	if err != nil {
		return nil, err
	}
	if in.bench == nil {
		return nil, fmt.Errorf("%s is not there: `kvbfs bench --json %s` makes it", from, from)
	}
	files := in.drawings()
	for _, doc := range documents {
		path := filepath.Join(top, doc.path)
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		done, err := in.update(doc, string(text))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(done), 0o644); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			return nil, err
		}
		drawn = append(drawn, path)
	}
	return drawn, nil
}

// inputs are the results that there are; nil: none.
type inputs struct{ bench, peers, curves *result.Report }

// load reads the results of a directory.
func load(dir, from string) (inputs, error) {
	var in inputs
	for path, to := range map[string]**result.Report{
		from:                              &in.bench,
		filepath.Join(dir, "peers.json"):  &in.peers,
		filepath.Join(dir, "curves.json"): &in.curves,
	} {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return in, err
		}
		*to = new(result.Report)
		if err := json.Unmarshal(text, *to); err != nil {
			return in, fmt.Errorf("%s: %w", path, err)
		}
	}
	return in, nil
}

// of returns the results of a block's name.
func (in inputs) of(name string) *result.Report {
	return map[string]*result.Report{"bench": in.bench, "peers": in.peers, "curves": in.curves}[name]
}

// drawings are all files to write, by name.
func (in inputs) drawings() map[string]string {
	files := map[string]string{}
	if in.bench != nil {
		for _, f := range paperFigures(in.bench) {
			files[f.Name+".svg"] = f.SVG
		}
	}
	for _, r := range []*result.Report{in.bench, in.peers, in.curves} {
		if r == nil {
			continue
		}
		for _, c := range r.Charts() {
			name := c.Name
			if r == in.peers && len(r.Peers()) > 0 && c.Name != "peers-"+result.File && c.Name != "peers-"+result.Loop {
				continue // the same layers as bench.json has
			}
			files[name+".svg"] = c.SVG
		}
	}
	return files
}
