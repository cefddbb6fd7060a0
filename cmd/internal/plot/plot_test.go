package plot

import (
	"encoding/xml"
	"io"
	"os"
	"strings"
	"testing"
)

func charts() map[string]string {
	return map[string]string{
		"bars.svg": Bars{Title: "A & B", Subtitle: "of <what>", Unit: "IOPS", Series: []string{"one", "two"}, Line: 100000, LineLabel: "limit",
			Groups: []Group{{"read", []Bar{{Value: 90000}, {Value: 20000, High: 30000, Label: "20-30k"}}}, {"write", []Bar{{Value: 0.5}, {Unknown: true, Label: "not known"}}}}}.SVG(),
		"lines.svg": Lines{Title: "Along depth", XLabel: "depth", Unit: "IOPS", LogX: true,
			Series: []Series{{"read", []Point{{1, 10000, "1"}, {8, 60000, "8"}, {32, 90000, "32"}}}, {"write", []Point{{1, 9000, "1"}, {32, 50000, "32"}}}}}.SVG(),
		"empty.svg": Bars{Title: "nothing"}.SVG(),
		"point.svg": Lines{Title: "one point", Series: []Series{{"a", []Point{{4, 5, "4"}}}}}.SVG(),
	}
}

// TestGolden: the drawings are what testdata has. KVBFS_GOLDEN=write writes them.
func TestGolden(t *testing.T) {
	for name, got := range charts() {
		path := "testdata/" + name
		if os.Getenv("KVBFS_GOLDEN") == "write" {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs; KVBFS_GOLDEN=write go test writes it, then look at it", path)
		}
	}
}

// TestWellFormed: a browser reads each of them, and no number went wrong.
func TestWellFormed(t *testing.T) {
	for name, text := range charts() {
		if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s has a number that is none", name)
		}
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

// TestWrapAndLegend: nothing runs out of the picture.
func TestWrapAndLegend(t *testing.T) {
	if got := strings.Join(wrap("4 KiB random read, QD32 x 2", 13), "|"); got != "4 KiB random|read, QD32 x|2" {
		t.Error(got)
	}
	names := []string{strings.Repeat("a", 60), strings.Repeat("b", 60), "c", strings.Repeat("d", 200)}
	at, rows := legend(names)
	if rows != 3 || at[1].x != left || at[1].y <= at[0].y || at[2].y != at[1].y || at[3].x != left {
		t.Errorf("%d rows: %v", rows, at)
	}
	if _, rows := legend(nil); rows != 0 {
		t.Errorf("%d rows of nothing", rows)
	}
}

func TestScale(t *testing.T) {
	for _, largest := range []float64{0, 0.83, 1, 7, 99, 120000, 1.2e6} {
		s := scaleFor(largest)
		if s.most < largest || s.step <= 0 || s.most/s.step > 8 {
			t.Errorf("%v: up to %v in steps of %v", largest, s.most, s.step)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.83: "0.83", 50: "50", 1000: "1k", 35400: "35.4k", 217000: "217k", 1.2e6: "1.2M"} {
		if got := number(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}
