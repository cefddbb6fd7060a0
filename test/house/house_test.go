// Package house checks the rules of the house: who may import whom, how long
// files and functions may be, which names are not used. docs/contributing.md
// gives the reasons.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kvbfs/kvbfs/"

const (
	maxFileLines     = 500
	maxFunctionLines = 70
)

type source struct {
	path string // below the top, with slashes
	dir  string
	test bool
	fset *token.FileSet
	file *ast.File
	text string
}

func sources(t *testing.T) []source {
	t.Helper()
	top := filepath.Join("..", "..")
	var all []source
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, p)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		all = append(all, source{
			path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(rel, "_test.go"),
			fset: fset, file: f, text: string(text),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("found only %d source files: the walk is broken", len(all))
	}
	return all
}

func imports(s source) []string {
	var out []string
	for _, i := range s.file.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// only says where a library may be used.
var only = map[string][]string{
	"github.com/hanwen/go-fuse":         {"fusefs", "test/naive"},
	"github.com/alecthomas/kong":        {"cmd"},
	"github.com/freddierice/go-losetup": {"losetup"},
	"github.com/bradfitz/gomemcache":    {"kvstore/memcached", "cmd/internal/bench", "test/naive"}, // there: what we are compared with
	"github.com/redis/go-redis":         {"kvstore/redis", "cmd/internal/bench"},                   // there: the keys of redis-benchmark
	"go.etcd.io/bbolt":                  {"kvstore/bolt"},
	"github.com/tikv":                   {"kvstore/tikv"},
}

// may lists what packages of ours each part may import; what a part does not
// list it must not use. Tests of a part may also use the test packages.
var may = map[string][]string{
	"kvstore":           {},
	"kvstore/pool":      {"kvstore"},
	"kvstore/volume":    {"kvstore", "kvstore/pool"},
	"kvstore/awake":     {},
	"kvstore/memcached": {"kvstore", "kvstore/awake", "kvstore/wire"},
	"kvstore/redis":     {"kvstore", "kvstore/awake", "kvstore/wire"},
	"kvstore/wire":      {"kvstore"},
	"kvstore/bolt":      {"kvstore"},
	"kvstore/tikv":      {"kvstore", "kvstore/wire"},
	"kvstore/file":      {"kvstore"},
	"kvstore/mem":       {"kvstore"},
	"kvstore/null":      {"kvstore", "kvstore/mem"},
	"kvstore/fault":     {"kvstore"},
	"kvstore/trace":     {"kvstore"},
	"kvstore/storetest": {"kvstore"},
	"cache":             {"kvstore"},
	"fusefs":            {"fusefs/devfuse", "fusefs/uring", "kvstore", "kvstore/pool", "kvstore/volume"},
	"fusefs/devfuse":    {"fusefs/uring", "kvstore/awake"},
	"cache/writeback":   {"kvstore"},
	"fusefs/uring":      {"kvstore/awake"},
	"losetup":           {},

	"kvstore/pool/leasetest": {"kvstore", "kvstore/pool"},
}

func TestImportsPointDownwards(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range imports(s) {
			for lib, dirs := range only {
				if !under(imp, lib) {
					continue
				}
				ok := s.test && under(s.dir, "test")
				for _, d := range dirs {
					ok = ok || under(s.dir, d)
				}
				if !ok {
					t.Errorf("%s imports %s, which belongs to %v only", s.path, imp, dirs)
				}
			}
			if !strings.HasPrefix(imp, module) {
				continue
			}
			imp = strings.TrimPrefix(imp, module)
			if under(imp, "cmd") && !under(s.dir, "cmd") || under(imp, "test") && !under(s.dir, "test") {
				t.Errorf("%s imports %s: nobody imports cmd or test", s.path, imp)
			}
			list, ruled := may[s.dir]
			if !ruled || s.test {
				continue
			}
			ok := false
			for _, a := range list {
				ok = ok || a == imp
			}
			if !ok {
				t.Errorf("%s imports %s: %s may import only %v", s.path, imp, s.dir, list)
			}
		}
	}
}

func TestContractDoesNoIO(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir != "kvstore" || s.test {
			continue
		}
		for _, imp := range imports(s) {
			switch imp {
			case "os", "net", "io", "syscall", "net/http":
				t.Errorf("%s imports %s: the contract does no I/O", s.path, imp)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range sources(t) {
		switch strings.TrimSuffix(s.file.Name.Name, "_test") {
		case "util", "utils", "common", "types", "helpers", "helper", "misc", "base":
			t.Errorf("%s: package %s says nothing of its job", s.path, s.file.Name.Name)
		}
	}
}

func TestPackageComments(t *testing.T) {
	has := map[string]bool{}
	for _, s := range sources(t) {
		if s.test && s.dir != "test/house" {
			continue
		}
		has[s.dir] = has[s.dir] || s.file.Doc != nil
	}
	for dir, ok := range has {
		if !ok {
			t.Errorf("%s: no package comment", dir)
		}
	}
}

func TestLength(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(s.text, "\n"); n > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: split it by what it is about", s.path, n, maxFileLines)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || s.test {
				continue
			}
			n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if n > maxFunctionLines {
				t.Errorf("%s: %s has %d lines, more than %d", s.path, f.Name.Name, n, maxFunctionLines)
			}
		}
	}
}

func TestNoPanicUnwritten(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir != "test/house" && strings.Contains(s.text, `panic("unwritten")`) {
			t.Errorf("%s is not written", s.path)
		}
	}
}

// TestNamedTestsExist: docs/semantics.md, docs/testing.md and docs/stores.md name the
// test that shows a statement.
func TestNamedTestsExist(t *testing.T) {
	exist := map[string]bool{}
	for _, s := range sources(t) {
		pkg := strings.TrimSuffix(s.file.Name.Name, "_test")
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test && strings.HasPrefix(f.Name.Name, "Test") {
				exist[pkg+"."+f.Name.Name] = true
			}
		}
	}
	for doc, least := range map[string]int{"semantics.md": 20, "testing.md": 20, "stores.md": 5} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", doc))
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`([a-z0-9]+\\.Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1)
		if len(named) < least {
			t.Fatalf("docs/%s names only %d tests", doc, len(named))
		}
		for _, n := range named {
			if !exist[n[1]] {
				t.Errorf("docs/%s names %s, which does not exist", doc, n[1])
			}
		}
	}
}

// TestTopLevel keeps the top of the tree as it was given.
func TestTopLevel(t *testing.T) {
	allowed := map[string]bool{
		"cmd": true, "fusefs": true, "kvstore": true, "cache": true, "losetup": true, "test": true,
		"go.mod": true, "go.sum": true, "Makefile": true, "README.md": true, "docs": true,
		"LICENSE": true, "CHANGELOG.md": true, "staticcheck.conf": true, "bin": true,
	}
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n := e.Name(); !allowed[n] && !strings.HasPrefix(n, ".") {
			t.Errorf("%s does not belong at the top level", n)
		}
	}
}
