package stack

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/kvbfs/kvbfs/kvstore/memcached"
)

// Secrets and whom to trust come from the environment, as files where that can be:
// an argument can be read by every user of the machine (ps), a URL ends up in logs
// and in shells' histories.
const (
	// EnvCA names a PEM file of the authorities that may vouch for a server, in
	// place of the system's.
	EnvCA = "KVBFS_TLS_CA"
	// EnvCert and EnvKey name the PEM files by which we prove who we are. They are
	// read at each connection, so a renewed certificate is used without a restart.
	EnvCert = "KVBFS_TLS_CERT"
	EnvKey  = "KVBFS_TLS_KEY"
	// EnvServerName is the name that each server's certificate must have, in place
	// of the host in the URL.
	EnvServerName = "KVBFS_TLS_SERVERNAME"
	// EnvAuthFile names a file that begins with user:password, as memcached -Y
	// reads it; EnvAuth is such a line itself.
	EnvAuthFile = "KVBFS_MEMCACHED_AUTH_FILE"
	EnvAuth     = "KVBFS_MEMCACHED_AUTH"
)

// maxSecret bounds how much is read of a file that holds a secret.
const maxSecret = 64 << 10

// readSecret reads a file that only its owner, us or root, may read.
func readSecret(variable, path string) ([]byte, error) {
	// A FIFO must not hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, inputf("%s: %v", variable, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, inputf("%s: %v", variable, err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.Mode().IsRegular():
		return nil, inputf("%s: %s is not a file", variable, path)
	case fi.Mode().Perm()&0o077 != 0:
		return nil, inputf("%s: others may read or write %s, which holds a secret: chmod 600 %s", variable, path, path)
	case ok && int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return nil, inputf("%s: %s belongs to user %d, who could change it", variable, path, st.Uid)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return nil, inputf("%s: %v", variable, err)
	}
	return b, nil
}

// tlsConfig says whom to trust and who we are, from the environment.
func tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: os.Getenv(EnvServerName)}
	if path := os.Getenv(EnvCA); path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, inputf("%s: %v", EnvCA, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, inputf("%s: no certificate in %s", EnvCA, path)
		}
	}
	cert, key := os.Getenv(EnvCert), os.Getenv(EnvKey)
	switch {
	case cert == "" && key == "":
		return cfg, nil
	case cert == "" || key == "":
		return nil, inputf("%s and %s belong together: only one is set", EnvCert, EnvKey)
	}
	if _, err := clientPair(cert, key); err != nil {
		return nil, err
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return clientPair(cert, key)
	}
	return cfg, nil
}

func clientPair(cert, key string) (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(cert)
	if err != nil {
		return nil, inputf("%s: %v", EnvCert, err)
	}
	keyPEM, err := readSecret(EnvKey, key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, inputf("%s and %s: %v", EnvCert, EnvKey, err)
	}
	return &pair, nil
}

// memcachedAuth returns the user and password for memcached, nil if none is set.
func memcachedAuth() (*memcached.Auth, error) {
	line, path := os.Getenv(EnvAuth), os.Getenv(EnvAuthFile)
	from := EnvAuth
	switch {
	case line != "" && path != "":
		return nil, inputf("%s and %s are both set: one is enough", EnvAuth, EnvAuthFile)
	case line == "" && path == "":
		return nil, nil
	case path != "":
		b, err := readSecret(EnvAuthFile, path)
		if err != nil {
			return nil, err
		}
		line, _, _ = strings.Cut(strings.TrimLeft(string(b), "\r\n"), "\n")
		line, from = strings.TrimSuffix(line, "\r"), path
	}
	a, err := memcached.ParseAuth(line)
	if err != nil {
		return nil, inputf("%s: %v", from, err)
	}
	return a, nil
}

// Distrust tells what to do when a server and we do not trust each other; "" if that
// is not the matter.
func Distrust(err error) string {
	switch {
	case errors.Is(err, memcached.ErrUntrusted):
		return fmt.Sprintf("; does the server speak TLS, and is its certificate's authority in %s? (docs/security.md)", EnvCA)
	case errors.Is(err, memcached.ErrAuth):
		return fmt.Sprintf("; put user:password into a file that only you may read and name it in %s", EnvAuthFile)
	}
	return ""
}
