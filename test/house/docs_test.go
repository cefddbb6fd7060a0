package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namesTest = regexp.MustCompile("`[a-z0-9]+\\.Test[A-Za-z0-9]+")
	item      = regexp.MustCompile(`^(\* |- |[0-9]+\. )`)
)

// statements are the paragraphs, list items and rows of tables of a page, by the
// heading above them. Lines that lead to a list or a table end in a colon and are
// none.
func statements(text string) map[string][]string {
	heading, all := "", map[string][]string{}
	add := func(lines []string) {
		if s := strings.Join(lines, "\n"); s != "" && !strings.HasSuffix(s, ":") {
			all[heading] = append(all[heading], s)
		}
	}
	for _, block := range regexp.MustCompile(`\n\s*\n`).Split(text, -1) {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		switch {
		case strings.HasPrefix(block, "#"):
			heading = strings.TrimLeft(block, "# ")
			continue
		case strings.HasPrefix(block, "|"):
			for _, row := range lines[2:] {
				add([]string{row})
			}
			continue
		}
		var one []string
		for _, l := range lines {
			if item.MatchString(l) {
				add(one)
				one = nil
			}
			one = append(one, l)
		}
		add(one)
	}
	return all
}

// TestEachStatementNamesItsTest: docs/semantics.md promises that. What the contract
// says is in the table at the end, by its number.
func TestEachStatementNamesItsTest(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "semantics.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := statements(string(text))
	contract := all["The contract"]
	if len(contract) < 8 || len(all) < 8 {
		t.Fatalf("%d rules under %d headings: the page is not read right", len(contract), len(all))
	}
	shown := "\n" + strings.Join(all["Tests"], "\n")
	for i, rule := range contract {
		if !regexp.MustCompile(fmt.Sprintf(`\n\| ([0-9], )*%d[:,]`, i+1)).MatchString(shown) {
			t.Errorf("no test is named for rule %d of the contract: %s", i+1, rule)
		}
	}
	delete(all, "The contract")
	delete(all, "Semantics") // what the page is
	for heading, list := range all {
		for _, s := range list {
			if !namesTest.MatchString(s) {
				t.Errorf("under %q no test is named for: %s", heading, s)
			}
		}
	}
}
