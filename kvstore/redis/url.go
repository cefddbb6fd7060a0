package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Ports unless told otherwise.
const (
	DefaultPort         = 6379
	DefaultSentinelPort = 26379
)

// maxSocketPath is what sockaddr_un holds, less its closing zero (unix(7)).
const maxSocketPath = 107

// Location is a store URL taken apart.
type Location struct {
	Config
	// Pool is the pool's name, empty if the URL has none.
	Pool string
	// Text is the one spelling of the URL. It has no secrets: there is no place for
	// them.
	Text string

	secure        bool
	ca, pem, name string
}

// ParseURL reads a store URL:
//
//	redis://[user@]host[:6379][,host2...][/db][?pool=name]
//	rediss://...                               the same with TLS
//	redis+unix:///run/redis.sock[,/second.sock][?db=0&pool=name]
//	redis+sentinel://[user@]name@host[:26379][,host2...][/db][?pool=name]
//	redis+cluster://[user@]host[:6379][,host2...][?pool=name]
//
// Options of TLS: tls=on (where the scheme does not say it), ca=FILE of the
// authorities to trust, pem=FILE of a client certificate with its key, name=HOST
// that the server's certificate must have. Passwords come from the environment or
// a file: see Secrets. Errors may quote pieces of the URL, but no password.
func ParseURL(raw string) (*Location, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, errors.New("want redis://host[:port][/db], redis+unix:///path, redis+sentinel://name@host or redis+cluster://host")
	}
	rest, query, _ := strings.Cut(rest, "?")
	if strings.Contains(rest, "#") || strings.Contains(query, "#") {
		return nil, errors.New("a fragment (#...) means nothing here")
	}
	l := &Location{}
	var err error
	switch scheme {
	case "redis", "rediss":
		l.secure = scheme == "rediss"
		err = l.parseHosts(rest, DefaultPort)
	case "redis+sentinel":
		l.Mode = Sentinel
		err = l.parseHosts(rest, DefaultSentinelPort)
	case "redis+cluster":
		l.Mode = Cluster
		err = l.parseHosts(rest, DefaultPort)
	case "redis+unix":
		err = l.parseSockets(rest)
	default:
		err = fmt.Errorf("scheme %q is not Redis's", scheme)
	}
	if err == nil {
		err = l.parseQuery(query)
	}
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return nil, err
	}
	l.Text = l.spell(scheme)
	return l, nil
}

func (l *Location) parseHosts(rest string, port int) error {
	if at := strings.LastIndexByte(rest, '@'); at >= 0 && strings.Contains(rest[:at], ":") {
		return errPassword // first, as it may hold anything
	}
	hosts, db, hasDB := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(hosts, '@'); i >= 0 {
		if err := l.parseUser(hosts[:i]); err != nil {
			return err
		}
		hosts = hosts[i+1:]
	} else if l.Mode == Sentinel {
		return errors.New("the name of the master is missing: redis+sentinel://NAME@host")
	}
	if db = strings.TrimSuffix(db, "/"); hasDB && db != "" {
		if err := l.setDB(db); err != nil {
			return err
		}
	}
	for h := range strings.SplitSeq(hosts, ",") {
		addr, err := parseHost(h, port)
		if err != nil {
			return err
		}
		l.Servers = append(l.Servers, addr)
	}
	return nil
}

var errPassword = errors.New("a password has no place in a URL, where others can read it: set KVBFS_REDIS_PASSWORD or KVBFS_REDIS_PASSWORD_FILE")

// parseUser takes what stands before the last @: a user, or a master's name, or
// both.
func (l *Location) parseUser(text string) error {
	user := text
	if l.Mode == Sentinel {
		i := strings.LastIndexByte(text, '@')
		l.Master = text[i+1:]
		user = text[:max(i, 0)]
		if err := checkWord("master's name", l.Master); err != nil {
			return err
		}
		if i < 0 {
			return nil
		}
	}
	l.User = user
	return checkWord("user", user)
}

func checkWord(what, w string) error {
	if w == "" || strings.ContainsAny(w, " \t\r\n/\\\"'@?&:%") {
		return fmt.Errorf("%s %q: it is empty, or has characters that do not belong there", what, w)
	}
	return nil
}

func (l *Location) setDB(text string) error {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return fmt.Errorf("database %q is not a number (the pool is an option: ?pool=name)", text)
	}
	l.DB = int(n)
	return nil
}

// parseHost returns host:port with the port filled in and IPv6 in brackets.
func parseHost(h string, defaultPort int) (string, error) {
	host, port := h, strconv.Itoa(defaultPort)
	switch {
	case strings.HasPrefix(h, "["):
		end := strings.IndexByte(h, ']')
		if end < 0 || net.ParseIP(strings.SplitN(h[1:end], "%", 2)[0]) == nil {
			return "", fmt.Errorf("server %q: want [IPv6 address]:port", h)
		}
		host = h[1:end]
		if tail := h[end+1:]; tail != "" {
			if tail[0] != ':' {
				return "", fmt.Errorf("server %q: want [address]:port", h)
			}
			port = tail[1:]
		}
	case strings.Count(h, ":") > 1:
		return "", fmt.Errorf("server %q: write an IPv6 address in brackets: [%s]", h, h)
	case strings.Contains(h, ":"):
		host, port, _ = strings.Cut(h, ":")
	}
	if host == "" || strings.ContainsAny(host, " \t\r\n/\\\"'") {
		return "", fmt.Errorf("server %q: want host[:port]", h)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("server %q: port %q is not between 1 and 65535", h, port)
	}
	return net.JoinHostPort(host, port), nil
}

func (l *Location) parseSockets(rest string) error {
	for p := range strings.SplitSeq(rest, ",") {
		path, err := url.PathUnescape(p)
		if err != nil {
			return fmt.Errorf("socket %q: %w", p, err)
		}
		if path == "" || path[0] != '/' || strings.HasSuffix(path, "/") || strings.ContainsAny(path, ",?") || strings.ContainsFunc(path, unicode.IsControl) {
			return fmt.Errorf("socket %q: want an absolute path (three slashes: redis+unix:///run/...)", path)
		}
		if len(path) > maxSocketPath {
			return fmt.Errorf("socket %q: the path has %d bytes, the kernel takes %d", path, len(path), maxSocketPath)
		}
		l.Servers = append(l.Servers, filepath.Clean(path))
	}
	return nil
}

func (l *Location) parseQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return fmt.Errorf("options %q: %w", query, err)
	}
	for name, v := range values {
		if len(v) != 1 {
			return fmt.Errorf("option %s is given %d times", name, len(v))
		}
		switch name {
		case "pool":
			l.Pool = v[0]
		case "db":
			if err := l.setDB(v[0]); err != nil {
				return err
			}
		case "tls":
			if v[0] != "on" {
				return fmt.Errorf("option tls=%q: want on, or leave it away", v[0])
			}
			l.secure = true
		case "ca":
			l.ca = v[0]
		case "pem":
			l.pem = v[0]
		case "name":
			l.name = v[0]
		default:
			return fmt.Errorf("option %q is not known: there are pool, db, tls, ca, pem, name", name)
		}
	}
	return nil
}

func (l *Location) check() error {
	for i, s := range l.Servers {
		if slices.Contains(l.Servers[:i], s) {
			return fmt.Errorf("server %s is named twice", s)
		}
	}
	if l.Mode == Cluster && l.DB != 0 {
		return errors.New("a cluster has one database, number 0 (the pool is an option: ?pool=name)")
	}
	if !l.secure && l.ca+l.pem+l.name != "" {
		return errors.New("options ca, pem and name need TLS: rediss://, or tls=on")
	}
	if len(l.Pool) > 64 {
		return fmt.Errorf("pool name %q has more than 64 characters", l.Pool)
	}
	for i := range len(l.Pool) {
		c := l.Pool[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return fmt.Errorf("pool name %q: letters, digits, and inside also . _ -", l.Pool)
		}
	}
	return nil
}

// spell returns the URL in its one form.
func (l *Location) spell(scheme string) string {
	if scheme == "redis" && l.secure {
		scheme = "rediss"
	}
	text := scheme + "://"
	if l.User != "" {
		text += l.User + "@"
	}
	if l.Master != "" {
		text += l.Master + "@"
	}
	text += strings.Join(l.Servers, ",")
	var options []string
	option := func(name, value string) {
		if value != "" {
			options = append(options, name+"="+strings.ReplaceAll(url.QueryEscape(value), "%2F", "/"))
		}
	}
	if l.DB != 0 && scheme == "redis+unix" {
		option("db", strconv.Itoa(l.DB))
	} else if l.DB != 0 {
		text += "/" + strconv.Itoa(l.DB)
	}
	if l.Pool != "default" { // what it is called if the URL does not say
		option("pool", l.Pool)
	}
	if l.secure && scheme != "rediss" {
		option("tls", "on")
	}
	option("ca", l.ca)
	option("pem", l.pem)
	option("name", l.name)
	if len(options) > 0 {
		text += "?" + strings.Join(options, "&")
	}
	return text
}

// Secrets completes the configuration with what is not in the URL: the password from
// KVBFS_REDIS_PASSWORD, or from the file that KVBFS_REDIS_PASSWORD_FILE names, and
// the certificates.
func (l *Location) Secrets() error {
	l.Password = os.Getenv("KVBFS_REDIS_PASSWORD")
	if path := os.Getenv("KVBFS_REDIS_PASSWORD_FILE"); path != "" && l.Password == "" {
		fi, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("%w: KVBFS_REDIS_PASSWORD_FILE: %w", kvstore.ErrInvalid, err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			return fmt.Errorf("%w: %s can be read by others: chmod 600 %s", kvstore.ErrInvalid, path, path)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%w: KVBFS_REDIS_PASSWORD_FILE: %w", kvstore.ErrInvalid, err)
		}
		l.Password = strings.TrimRight(string(text), "\r\n")
	}
	if l.User != "" && l.Password == "" {
		return fmt.Errorf("%w: user %q needs a password: set KVBFS_REDIS_PASSWORD or KVBFS_REDIS_PASSWORD_FILE", kvstore.ErrInvalid, l.User)
	}
	if !l.secure {
		return nil
	}
	l.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: l.name}
	if l.ca != "" {
		text, err := os.ReadFile(l.ca)
		if err != nil {
			return fmt.Errorf("%w: option ca: %w", kvstore.ErrInvalid, err)
		}
		if l.TLS.RootCAs = x509.NewCertPool(); !l.TLS.RootCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("%w: option ca: %s has no certificate in PEM", kvstore.ErrInvalid, l.ca)
		}
	}
	if l.pem != "" {
		pair, err := tls.LoadX509KeyPair(l.pem, l.pem)
		if err != nil {
			return fmt.Errorf("%w: option pem: %w", kvstore.ErrInvalid, err)
		}
		l.TLS.Certificates = []tls.Certificate{pair}
	}
	return nil
}
