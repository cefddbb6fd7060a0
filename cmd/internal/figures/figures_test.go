package main

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

const top = "../../.."

// TestCommitted: the documents and drawings are what the committed results give.
// `make figures` writes them. Blocks and drawings of results that are not committed
// are not looked at, the marks of the blocks are.
func TestCommitted(t *testing.T) {
	dir := filepath.Join(top, "docs/figures")
	in, err := load(dir, filepath.Join(dir, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range documents {
		text, err := os.ReadFile(filepath.Join(top, doc.path))
		if err != nil {
			t.Fatal(err)
		}
		want, err := in.update(doc, string(text))
		if err != nil {
			t.Fatal(err)
		}
		if want != string(text) {
			t.Errorf("%s is not what the committed results give: run `make figures`", doc.path)
		}
	}
	files := in.drawings()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("docs/figures/%s is not what the committed results give (%v): run `make figures`", name, err)
		}
	}
	drawn, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range drawn {
		if _, ok := files[filepath.Base(path)]; !ok {
			t.Errorf("docs/figures/%s comes from no committed results", filepath.Base(path))
		}
	}
}

// report has every row that the figures look for.
func report(factor float64) *result.Report {
	r := &result.Report{Machine: result.Machine{Kernel: "Linux 6.18", CPUs: 2, Fio: "fio-3.33"}, Settings: result.Settings{Rounds: 5, Seconds: 2, Size: 1 << 30}}
	add := func(subject, transport, place string, w result.Work, iops float64) {
		row := result.Row{Subject: subject, Transport: transport, Place: place, Work: w,
			Samples: []result.Sample{{IOPS: iops, Bytes: iops * float64(w.Block), MeanUS: 1e6 / iops}}}
		row.Settle()
		r.Rows = append(r.Rows, row)
	}
	for _, kind := range []string{"get", "set"} {
		limit := map[string]float64{"get": 400e3, "set": 200e3}[kind]
		add(result.Raw, "", "", result.Work{Kind: kind, Block: 4096, Depth: 1, Jobs: 1}, 40e3)
		add(result.Raw, "", "", result.Work{Kind: kind, Block: 4096, Depth: 32, Jobs: 2}, limit)
		add(result.Raw, "", "", result.Work{Kind: kind, Block: 4096, Depth: 32, Jobs: 2, Run: 32}, limit)
		add(result.Gomemcache, "", "", result.Work{Kind: kind, Block: 4096, Depth: 1, Jobs: 16}, 50e3)
	}
	for _, t := range []string{"dev", "uring"} {
		for _, place := range []string{result.File, result.Loop, result.Ext4, result.XFS} {
			for _, w := range []result.Work{{Kind: "randread", Block: 4096, Depth: 1, Jobs: 1}, {Kind: "randwrite", Block: 4096, Depth: 1, Jobs: 1},
				{Kind: "randread", Block: 4096, Depth: 32, Jobs: 2}, {Kind: "randwrite", Block: 4096, Depth: 32, Jobs: 2}, {Kind: "read", Block: 128 << 10, Depth: 8, Jobs: 1}} {
				rate := 100e3 * factor * 4096 / float64(w.Block)
				add(result.Kvbfs, t, place, w, rate)
				add(result.Null, t, place, w, 2*rate)
			}
		}
	}
	return r
}

// TestFiguresRelateToTheLimit: our bars are shares of the limit of the same run,
// the paper's stand as they are known.
func TestFiguresRelateToTheLimit(t *testing.T) {
	want := map[string][]string{
		"figure-2": {">&gt;0.83<", ">0.04<", ">0.50-0.75<", ">0.25<", ">0.12<"}, // 100 k of 400 k; 50 k of 400 k
		"figure-6": {">&gt;0.83<", ">0.25<", "not known here"},
		"figure-7": {">0.50-0.75<", ">0.50<"},
		"figure-8": {">0.86-1.00<", ">0.4<"}, // 10 us of 25 us
		"figure-9": {">&gt;0.83<", ">0.25<", "128 KiB sequential read"},
	}
	figures := paperFigures(report(1))
	if len(figures) != len(want) {
		t.Errorf("%d figures", len(figures))
	}
	for _, f := range figures {
		for _, w := range want[f.Name] {
			if !strings.Contains(f.SVG, w) {
				t.Errorf("%s does not show %q", f.Name, w)
			}
		}
		d := xml.NewDecoder(strings.NewReader(f.SVG))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
		}
	}
}

// TestRun: documents and drawings follow the results, and a second run changes
// nothing.
func TestRun(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "docs/figures")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	block := func(name string) string {
		return "<!-- " + name + ":begin -->\nto be replaced\n<!-- " + name + ":end -->\n"
	}
	write("README.md", "# a\n"+block("bench")+"end\n")
	write("docs/performance.md", block("bench")+block("peers")+block("curves"))
	if _, err := run(root, dir, ""); err == nil || !strings.Contains(err.Error(), "bench.json") {
		t.Fatalf("without results: %v", err)
	}
	text, err := json.Marshal(report(1))
	if err != nil {
		t.Fatal(err)
	}
	write("docs/figures/bench.json", string(text))
	if _, err := run(root, dir, ""); err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	readme, perf := read("README.md"), read("docs/performance.md")
	if !strings.HasPrefix(readme, "# a\n<!-- bench:begin -->\n") || !strings.HasSuffix(readme, "<!-- bench:end -->\nend\n") || strings.Contains(readme, "to be replaced") || !strings.Contains(readme, "**100 000**/s") {
		t.Errorf("README.md:\n%s", readme)
	}
	if strings.Count(perf, "to be replaced") != 2 || !strings.Contains(perf, "**The store alone**") {
		t.Errorf("performance.md:\n%s", perf)
	}
	for _, image := range []string{"figure-2", "figure-6", "figure-7", "figure-8", "figure-9", "efficiency"} {
		if !strings.Contains(read("docs/figures/"+image+".svg"), "</svg>") {
			t.Errorf("%s is no drawing", image)
		}
	}
	if _, err := run(root, dir, ""); err != nil || read("README.md") != readme || read("docs/performance.md") != perf {
		t.Errorf("a second run changes something: %v", err)
	}
	text, _ = json.Marshal(report(0.5))
	write("docs/figures/bench.json", string(text))
	if _, err := run(root, dir, ""); err != nil || !strings.Contains(read("README.md"), "**50 000**/s") {
		t.Errorf("other results, the same README: %v", err)
	}
	write("README.md", "no marks\n")
	if _, err := run(root, dir, ""); err == nil || !strings.Contains(err.Error(), "bench:begin") {
		t.Errorf("without marks: %v", err)
	}
}
