package stack

import (
	"errors"
	"strings"
	"testing"
)

// FuzzCanonical: a store URL is refused as bad input, or has one spelling, which is
// its own. A password is in no message, wherever the fuzzer puts it.
func FuzzCanonical(f *testing.F) {
	for _, url := range []string{"memcached://h:11211/p", "memcached+tls://[::1]:1,h", "memcached+unix:///run/x,/y?pool=p",
		"file:///var/lib", "mem:", "memcached://u:S3CRET@h/p", "redis://:S3CRET@h?password=S3CRET", "file://localhost/a b", "://"} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		if len(url) > 1<<10 { // nothing but its length is different
			return
		}
		text, err := Canonical(url)
		if err != nil {
			if !errors.Is(err, ErrInput) {
				t.Fatalf("%q: %v is not about the input", url, err)
			}
			if strings.Contains(url, ":S3CRET@") && strings.Count(url, "S3CRET") == 1 && strings.HasPrefix(url, "memcached://") &&
				strings.Contains(err.Error(), "S3CRET") {
				t.Fatalf("%q: the message shows the password: %v", url, err)
			}
			return
		}
		if again, err := Canonical(text); err != nil || again != text {
			t.Fatalf("%q is %q, and that %q (%v)", url, text, again, err)
		}
		if strings.ContainsAny(text, "\n\r\x00") {
			t.Fatalf("%q has a line end in its canonical form %q", url, text)
		}
	})
}
