// Package plot draws bars and lines as SVG: text that a browser and a code host
// show as it is, without scripts, fonts or rasters.
//
// A library would draw more kinds of plots than the two that are needed here.
// gonum/plot brings a dozen modules with fonts and rasterisers and writes glyphs as
// paths; go-echarts writes scripts, which a README does not run. Two hundred lines
// give files that can be compared line by line, byte for byte the same for the same
// figures.
//
// # The nouns
//
//   - A group is a place on the horizontal axis of a bar chart, with its bars.
//   - A series is what bars or points of one colour have in common.
//   - An unknown bar has no height: its label says why.
package plot

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Bars is a bar chart.
type Bars struct {
	Title, Subtitle string
	Unit            string // of the vertical axis
	Series          []string
	Groups          []Group
	// Line draws one horizontal line with a label; 0: none.
	Line      float64
	LineLabel string
}

// Group is one place on the horizontal axis.
type Group struct {
	Name string
	Bars []Bar // one per series, in their order
}

// Bar is one value. High draws a range from Value up to it.
type Bar struct {
	Value, High float64
	Label       string // above the bar; empty: the value
	Unknown     bool
}

// Lines is a chart of curves over a shared horizontal axis.
type Lines struct {
	Title, Subtitle string
	XLabel, Unit    string
	// LogX places values by their logarithm.
	LogX   bool
	Series []Series
}

// Series is one curve.
type Series struct {
	Name   string
	Points []Point
}

// Point is one value of a curve; Label stands on the axis, the same for equal X.
type Point struct {
	X, Y  float64
	Label string
}

// Colours that differ in lightness too, for those who see few of them.
var colours = []string{"#1f5fa8", "#e08214", "#7fb6e6", "#8c510a", "#5aae61", "#9970ab", "#d6604d", "#4d4d4d"}

// Measures in SVG units.
const (
	width, height = 760, 380 // without the legend
	left, right   = 66, 16
	top, bottom   = 66, 50
	letter        = 6.2 // mean width of a small letter
	row           = 18  // of the legend
)

// svg collects the elements.
type svg struct{ b strings.Builder }

func (s *svg) add(format string, args ...any) { fmt.Fprintf(&s.b, format+"\n", args...) }

func (s *svg) text(x, y float64, class, anchor, text string) {
	s.add(`<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`, x, y, class, anchor, html.EscapeString(text))
}

// open begins a chart: background, titles, legend. Colours of text and background
// are fixed, so that dark pages show it as it is meant.
func open(title, subtitle string, series []string) *svg {
	s := &svg{}
	at, rows := legend(series)
	full := height + rows*row
	s.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`, width, full, html.EscapeString(title))
	s.add(`<style>text{font-family:sans-serif;font-size:12px;fill:#222}.t{font-size:15px;font-weight:bold}.s{fill:#555}.v{font-size:10.5px}</style>`)
	s.add(`<rect width="%d" height="%d" fill="#fff"/>`, width, full)
	s.text(left, 22, "t", "start", title)
	s.text(left, 40, "s", "start", subtitle)
	for i, name := range series {
		x, y := at[i].x, float64(height)+at[i].y
		s.add(`<rect x="%.1f" y="%.1f" width="10" height="10" fill="%s"/>`, x, y-9, colours[i%len(colours)])
		s.text(x+14, y, "v", "start", name)
	}
	return s
}

type spot struct{ x, y float64 }

// legend places names in as many rows as they need.
func legend(series []string) (at []spot, rows int) {
	x := float64(left)
	for _, name := range series {
		w := 30 + letter*float64(len(name))
		if rows == 0 || x+w > width-right && x > left {
			x, rows = left, rows+1
		}
		at = append(at, spot{x, float64(rows*row) - 8})
		x += w
	}
	return at, rows
}

func (s *svg) close() string {
	s.add(`</svg>`)
	return s.b.String()
}

// scale maps values from 0 to most onto the height of the chart.
type scale struct{ most, step float64 }

// scaleFor chooses round steps so that about five lines cover the largest value.
func scaleFor(largest float64) scale {
	if largest <= 0 {
		return scale{1, 0.2}
	}
	power := math.Pow(10, math.Floor(math.Log10(largest/5)))
	step := power
	for _, f := range []float64{1, 2, 2.5, 5, 10} {
		if step = f * power; largest/step <= 6 {
			break
		}
	}
	return scale{math.Ceil(largest*1.02/step) * step, step}
}

func (c scale) y(v float64) float64 {
	return height - bottom - math.Min(v, c.most)/c.most*(height-top-bottom)
}

func (s *svg) grid(c scale, unit string) {
	for v := 0.0; v <= c.most*1.0001; v += c.step {
		y := c.y(v)
		s.add(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`, left, y, width-right, y)
		s.text(left-6, y+4, "v", "end", number(v))
	}
	s.text(left, top-8, "v", "start", unit)
}

// number spells a value shortly: 1.2M, 35k, 0.83.
func number(v float64) string {
	short := func(v float64, unit string) string {
		text := fmt.Sprintf("%.3g", v)
		if v >= 100 {
			text = fmt.Sprintf("%.0f", v)
		}
		return text + unit
	}
	switch {
	case v >= 1e6:
		return short(v/1e6, "M")
	case v >= 1e3:
		return short(v/1e3, "k")
	}
	return short(v, "")
}

// SVG draws the chart.
func (c Bars) SVG() string {
	s := open(c.Title, c.Subtitle, c.Series)
	largest := c.Line
	for _, g := range c.Groups {
		for _, b := range g.Bars {
			largest = max(largest, b.Value, b.High)
		}
	}
	sc := scaleFor(largest)
	s.grid(sc, c.Unit)
	each := float64(width-left-right) / float64(max(len(c.Groups), 1))
	for i, g := range c.Groups {
		x := left + each*float64(i)
		for line, name := range wrap(g.Name, int(each/6.8)) {
			s.text(x+each/2, height-bottom+16+13*float64(line), "g", "middle", name)
		}
		w := math.Min(each*0.8/float64(max(len(g.Bars), 1)), 56)
		x += (each - w*float64(len(g.Bars))) / 2
		for j, b := range g.Bars {
			s.bar(sc, b, x+w*float64(j), w, colours[j%len(colours)])
		}
	}
	if c.Line > 0 {
		y := sc.y(c.Line)
		s.add(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#222" stroke-dasharray="5 4"/>`, left, y, width-right, y)
		s.text(width-right, y-4, "v", "end", c.LineLabel)
	}
	return s.close()
}

// wrap breaks a name at spaces into lines of so many letters, as far as it can.
func wrap(name string, letters int) []string {
	var lines []string
	for word := range strings.FieldsSeq(name) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= letters {
			lines[n-1] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}

func (s *svg) bar(sc scale, b Bar, x, w float64, colour string) {
	label := b.Label
	if b.Unknown {
		y := sc.y(0) - 6
		s.add(`<text x="%.1f" y="%.1f" class="v s" transform="rotate(-90 %.1f %.1f)">%s</text>`, x+w/2+4, y, x+w/2+4, y, html.EscapeString(label))
		return
	}
	if label == "" {
		label = number(b.Value)
	}
	y := sc.y(b.Value)
	s.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, x+1, y, w-2, sc.y(0)-y, colour)
	if b.High > b.Value {
		high := sc.y(b.High)
		s.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" fill-opacity="0.4"/>`, x+1, high, w-2, y-high, colour)
		y = high
	}
	s.text(x+w/2, y-4, "v", "middle", label)
}

// SVG draws the chart.
func (c Lines) SVG() string {
	var names []string
	largest, low, high := 0.0, math.Inf(1), math.Inf(-1)
	position := func(x float64) float64 {
		if c.LogX && x > 0 {
			return math.Log2(x)
		}
		return x
	}
	labels := map[float64]string{}
	for _, se := range c.Series {
		names = append(names, se.Name)
		for _, p := range se.Points {
			largest = max(largest, p.Y)
			low, high = min(low, position(p.X)), max(high, position(p.X))
			labels[p.X] = p.Label
		}
	}
	s := open(c.Title, c.Subtitle, names)
	sc := scaleFor(largest)
	s.grid(sc, c.Unit)
	at := func(x float64) float64 {
		if high <= low {
			return (left + width - right) / 2
		}
		return left + 20 + (position(x)-low)/(high-low)*(width-left-right-40)
	}
	drawn := map[float64]bool{}
	for i, se := range c.Series {
		var path []string
		for _, p := range se.Points {
			x, y := at(p.X), sc.y(p.Y)
			path = append(path, fmt.Sprintf("%.1f,%.1f", x, y))
			s.add(`<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x, y, colours[i%len(colours)])
			if !drawn[p.X] {
				drawn[p.X] = true
				s.text(x, height-bottom+18, "v", "middle", labels[p.X])
			}
		}
		s.add(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(path, " "), colours[i%len(colours)])
	}
	s.text((left+width-right)/2, height-bottom+36, "v", "middle", c.XLabel)
	return s.close()
}
