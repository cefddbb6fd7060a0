package stack

import (
	"errors"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"file:///var/lib/kvbfs/":                   "file:///var/lib/kvbfs",
		"file:/var//lib/./kvbfs":                   "file:///var/lib/kvbfs",
		"FILE:///a%20b":                            "file:///a%20b",
		"file://localhost/a":                       "file:///a",
		"mem:":                                     "mem:",
		"redis://h/0?pool=default":                 "redis://h:6379",
		"Redis+Cluster://a,b:1?pool=p":             "redis+cluster://a:6379,b:1?pool=p",
		"redis+sentinel://m@a/2":                   "redis+sentinel://m@a:26379/2",
		"bolt:///var/../x.db":                      "bolt:///x.db",
		"mem://":                                   "mem:",
		"null:":                                    "null:",
		"memcached://h":                            "memcached://h:11211",
		"memcached://h:11211/default":              "memcached://h:11211",
		"memcached://h,h2:1/p":                     "memcached://h:11211,h2:1/p",
		"Memcached://[::1]:11211/":                 "memcached://[::1]:11211",
		"memcached+TLS://h/p":                      "memcached+tls://h:11211/p",
		"memcached+unix:///run/x.sock":             "memcached+unix:///run/x.sock",
		"memcached+unix:///run/../run/x.sock":      "memcached+unix:///run/x.sock",
		"memcached+unix:///run/x?pool=default":     "memcached+unix:///run/x",
		"memcached+unix:///run/x.sock?pool=mypool": "memcached+unix:///run/x.sock?pool=mypool",
	} {
		got, err := Canonical(in)
		if err != nil || got != want {
			t.Errorf("Canonical(%q) = %q, %v; want %q", in, got, err, want)
			continue
		}
		if again, err := Canonical(got); err != nil || again != got {
			t.Errorf("Canonical(%q) = %q, %v; a canonical URL must stay as it is", got, again, err)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for _, in := range []string{"nonsense", "nfs://h", "redis://u:s3cret@h", "http://h", "bolt://x.db", "bolt:///x/", "redis+cluster://h/1", "file://relative/dir", "file:relative", "file:",
		"file:///a?mode=1", "file:///a\x00", "bolt:///a\nb", "memcached:", "memcached://", "memcached://h:99999", "memcached://h:0", "memcached://,", "memcached://h,h",
		"memcached://h/a/b", "memcached+unix://run/x", "memcached+unix:", "mem:x", "null:x", "mem://host", "://", ":"} {
		got, err := Canonical(in)
		if !errors.Is(err, ErrInput) {
			t.Errorf("Canonical(%q) = %q, %v; want ErrInput", in, got, err)
		}
	}
}

func TestUnknownSchemeListsKnownOnes(t *testing.T) {
	_, err := Canonical("etcd://h")
	if err != nil && strings.Contains(err.Error(), "null:") {
		t.Errorf("error %q offers the store that keeps nothing", err)
	}
	for _, want := range []string{`"etcd"`, "memcached://", "memcached+unix://", "file://", "mem:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		"memcached://h:1/p":                     "memcached://h:1/p",
		"redis://user:s3cret@h:1/0":             "redis://user:***@h:1/0",
		"redis://:s3cret@h":                     "redis://:***@h",
		"redis://user@h":                        "redis://user@h",
		"redis://u:s3cret@x@h/p":                "redis://u:***@h/p",
		"redis://u:s3/cret@h/p":                 "redis://u:***@h/p",
		"redis://h/?password=s3cret&db=1":       "redis://h/?password=***&db=1",
		"redis://h?TLS_KEY=s3cret&token=s3cret": "redis://h?TLS_KEY=***&token=***",
		"file:///a/b@c":                         "file:///a/b@c",
		"memcached:///:s3cret@":                 "memcached:///:***@",
		"memcached://?:s3cret@":                 "memcached://?:***@",
		"redis://u:s3?cret@h?tls_key=s3cret":    "redis://u:***@h?tls_key=***",
		"redis://h:1?name=a@b":                  "redis://h:1?name=a@b",
		"memcached://h/u:s3cret@h":              "memcached://h/u:***@h",
		"memcached+unix:///a/b:c@d/s":           "memcached+unix:///a/b:c@d/s",
	} {
		if got := Mask(in); got != want {
			t.Errorf("Mask(%q) = %q, want %q", in, got, want)
		}
	}
}

// No error about a URL may show its password.
func TestErrorsAreMasked(t *testing.T) {
	for _, in := range []string{"memcached://u:s3cret@h:1/p", "memcached://u:s3cret@/x/y", "nope://u:s3cret@h", "memcached+unix://u:s3cret@h/x", "mem://u:s3cret@h", "file://u:s3cret@h/x"} {
		if _, err := Canonical(in); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Canonical(%q): %v", in, err)
		}
	}
}
