package stack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

func TestSecretsComeFromFilesOfOurs(t *testing.T) {
	dir := isolate(t)
	file := func(name string, mode os.FileMode, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		env, path string
		user      string // empty: refused
	}{
		{"", file("good", 0o600, "alice:s3cret\nbob:other\n"), "alice"},
		{"", file("crlf", 0o400, "alice:s3cret\r\n"), "alice"},
		{"", file("group", 0o640, "alice:s3cret\n"), ""},
		{"", file("world", 0o604, "alice:s3cret\n"), ""},
		{"", file("nothing", 0o600, ""), ""},
		{"", file("nonsense", 0o600, "s3cret"), ""},
		{"", filepath.Join(dir, "absent"), ""},
		{"", dir, ""},
		{"alice:s3cret", "", "alice"},
		{"alice:s3cret", file("both", 0o600, "alice:s3cret\n"), ""},
		{"s3cret", "", ""},
	} {
		t.Setenv(EnvAuth, c.env)
		t.Setenv(EnvAuthFile, c.path)
		a, err := memcachedAuth()
		if c.user == "" {
			if !errors.Is(err, ErrInput) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%q, %q: %v, %v; want an ErrInput that shows no secret", c.env, c.path, a, err)
			}
			continue
		}
		if err != nil || a.User != c.user || a.Password != "s3cret" {
			t.Errorf("%q, %q: %v, %v", c.env, c.path, a, err)
		}
	}
}

func TestTLSFromTheEnvironment(t *testing.T) {
	dir := isolate(t)
	certs := memcachedtest.NewCerts(t)
	open := filepath.Join(dir, "open.key")
	b, err := os.ReadFile(certs.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(open, b, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ca, cert, key string
		ok            bool
	}{
		"nothing":        {ok: true},
		"authority":      {ca: certs.CA, ok: true},
		"all":            {certs.CA, certs.ClientCert, certs.ClientKey, true},
		"no key":         {certs.CA, certs.ClientCert, "", false},
		"no certificate": {certs.CA, "", certs.ClientKey, false},
		"readable key":   {certs.CA, certs.ClientCert, open, false},
		"another key":    {certs.CA, certs.ClientCert, certs.ServerKey, false},
		"absent":         {ca: filepath.Join(dir, "absent")},
		"no PEM":         {ca: certs.ClientKey},
	} {
		t.Setenv(EnvCA, c.ca)
		t.Setenv(EnvCert, c.cert)
		t.Setenv(EnvKey, c.key)
		cfg, err := tlsConfig()
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
		if c.ok && (cfg.InsecureSkipVerify || (c.cert != "") != (cfg.GetClientCertificate != nil)) {
			t.Errorf("%s: %+v", name, cfg)
		}
	}
}

// TestOpenSecured opens a stack over TLS, and is told what to do if it cannot.
func TestOpenSecured(t *testing.T) {
	isolate(t)
	certs := memcachedtest.NewCerts(t)
	auth := filepath.Join(t.TempDir(), "auth")
	if err := os.WriteFile(auth, []byte("alice:s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := memcachedtest.Start(t, memcachedtest.TCP(), memcachedtest.TLS(certs), memcachedtest.Args("-Y", auth))
	url := "memcached+tls://" + server.Addr()
	for _, step := range []struct{ variable, value, complaint string }{
		{EnvCA, "", EnvCA}, // the system's authorities do not know the test's
		{EnvCA, certs.CA, "certificate required"},
		{EnvCert, certs.ClientCert, EnvKey},
		{EnvKey, certs.ClientKey, EnvAuthFile},
		{EnvAuthFile, auth, ""},
	} {
		t.Setenv(step.variable, step.value)
		s, err := Open(t.Context(), Config{URL: url})
		for try := 0; try < 20 && err != nil && strings.Contains(err.Error(), "connection reset"); try++ {
			// The server said why and closed; its reset may overtake that.
			s, err = Open(t.Context(), Config{URL: url})
		}
		if err == nil {
			if s.URL != url {
				t.Errorf("URL %q, want %q", s.URL, url)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if (err == nil) != (step.complaint == "") || err != nil && !strings.Contains(err.Error(), step.complaint) {
			t.Fatalf("with %s=%s: %v; want it to name %q", step.variable, step.value, err, step.complaint)
		}
	}
}
