package result

import (
	"html"
	"strings"
)

// style of the page; it follows the reader's preference for dark or light.
const style = `body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}svg{max-width:800px;width:100%;height:auto;border:1px solid #ddd;margin:.5em 0}
table{border-collapse:collapse;margin:1.5em 0 .3em;font-size:13px}caption{text-align:left;font-weight:bold;padding:.3em 0}
td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #ccc4}td:first-child,th:first-child{text-align:left}
.note{color:#777;font-size:13px}@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}}`

// HTML is the whole report as one page that needs nothing else: no script, no
// style sheet, no image from anywhere.
func (r *Report) HTML() string {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>kvbfs bench</title><style>" + style + "</style></head><body>\n")
	b.WriteString("<h1>kvbfs bench</h1>\n<p>kvbfs " + html.EscapeString(r.Version) + ". " + html.EscapeString(r.Headline()) + "</p>\n")
	for _, c := range r.Charts() {
		b.WriteString(c.SVG)
	}
	for _, t := range r.Tables() {
		b.WriteString(t.HTML())
	}
	for _, s := range r.Skipped {
		b.WriteString("<p class=note>Skipped: " + html.EscapeString(s) + "</p>\n")
	}
	b.WriteString("</body></html>\n")
	return b.String()
}
