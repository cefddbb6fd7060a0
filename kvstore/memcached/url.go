package memcached

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

// DefaultPort is where memcached listens unless told otherwise.
const DefaultPort = 11211

// maxSocketPath is what sockaddr_un holds, less its closing zero (unix(7)).
const maxSocketPath = 107

// ParseURL reads a store URL:
//
//	memcached://host[:11211],host2:port,[::1]:port/pool
//	memcached+tls://...                      the same, TLS on each connection
//	memcached+unix:///run/memcached.sock[,/run/second.sock][?pool=name]
//
// masked is the URL as it may be shown. Passwords, keys and certificates come by
// other ways (Config.Auth, Config.TLS), so user information is refused and masked
// is the canonical spelling.
func ParseURL(raw string) (cfg Config, pool string, masked string, err error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return cfg, "", "", fmt.Errorf("store URL %q: want memcached://host[:port][,host...]/pool or memcached+unix:///path", raw)
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if strings.Contains(rest, "#") || strings.Contains(query, "#") {
		return cfg, "", "", fmt.Errorf("store URL %q: a fragment (#...) means nothing here", raw)
	}
	switch scheme {
	case "memcached", "memcached+tls":
		if scheme == "memcached+tls" {
			// The caller says whom to trust; without that Open trusts whom the system does.
			cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if hasQuery {
			return cfg, "", "", fmt.Errorf("store URL %q: no ?options here; the pool is the path: memcached://host/pool", raw)
		}
		cfg.Servers, pool, err = parseHosts(rest)
		masked = scheme + "://" + strings.Join(cfg.Servers, ",")
		if pool != "" {
			masked += "/" + pool
		}
	case "memcached+unix":
		cfg.Servers, err = parseSockets(rest)
		if err == nil {
			pool, err = parsePoolQuery(query)
		}
		masked = "memcached+unix://" + strings.Join(cfg.Servers, ",")
		if pool != "" {
			masked += "?pool=" + pool
		}
	default:
		err = fmt.Errorf("scheme %q is not memcached's", scheme)
	}
	if err != nil {
		return Config{}, "", "", fmt.Errorf("store URL %q: %w", raw, err)
	}
	return cfg, pool, masked, nil
}

func parseHosts(rest string) (servers []string, pool string, err error) {
	if strings.Contains(rest, "@") {
		return nil, "", fmt.Errorf("no user and password in the URL: KVBFS_MEMCACHED_AUTH_FILE names a file that holds user:password")
	}
	hosts, pool, _ := strings.Cut(rest, "/")
	pool = strings.TrimSuffix(pool, "/")
	if err := checkPool(pool); err != nil {
		return nil, "", err
	}
	for h := range strings.SplitSeq(hosts, ",") {
		addr, err := parseHost(h)
		if err != nil {
			return nil, "", err
		}
		servers = append(servers, addr)
	}
	return servers, pool, unique(servers)
}

// parseHost returns host:port with the port filled in and IPv6 in brackets.
func parseHost(h string) (string, error) {
	if h == "" {
		return "", fmt.Errorf("a server's name is empty: want host[:port]")
	}
	host, port := h, strconv.Itoa(DefaultPort)
	switch {
	case strings.HasPrefix(h, "["):
		end := strings.IndexByte(h, ']')
		if end < 0 {
			return "", fmt.Errorf("server %q: the bracket of the IPv6 address is not closed", h)
		}
		host = h[1:end]
		if ip := net.ParseIP(strings.SplitN(host, "%", 2)[0]); ip == nil || !strings.Contains(host, ":") {
			return "", fmt.Errorf("server %q: %q is not an IPv6 address", h, host)
		}
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
	if host == "" {
		return "", fmt.Errorf("server %q: the host is empty", h)
	}
	if strings.ContainsAny(host, " \t\r\n/\\\"'") {
		return "", fmt.Errorf("server %q: the host has characters that no host name has", h)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("server %q: port %q is not between 1 and 65535", h, port)
	}
	return net.JoinHostPort(host, port), nil
}

func parseSockets(rest string) (servers []string, err error) {
	for p := range strings.SplitSeq(rest, ",") {
		path, err := url.PathUnescape(p)
		if err != nil {
			return nil, fmt.Errorf("socket %q: %w", p, err)
		}
		if err := checkSocketPath(path); err != nil {
			return nil, err
		}
		servers = append(servers, filepath.Clean(path))
	}
	return servers, unique(servers)
}

func checkSocketPath(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("a socket's path is empty: want memcached+unix:///run/memcached.sock")
	case path[0] != '/':
		return fmt.Errorf("socket %q: the path must be absolute (three slashes: memcached+unix:///run/...)", path)
	case strings.HasSuffix(path, "/"):
		return fmt.Errorf("socket %q: this is a directory's name", path)
	case len(path) > maxSocketPath:
		return fmt.Errorf("socket %q: the path has %d bytes, the kernel takes %d", path, len(path), maxSocketPath)
	case strings.ContainsFunc(path, unicode.IsControl):
		return fmt.Errorf("socket %q: the path has a control character", path)
	}
	return nil
}

func parsePoolQuery(query string) (string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", fmt.Errorf("options %q: %w", query, err)
	}
	for name, v := range values {
		if name != "pool" || len(v) != 1 {
			return "", fmt.Errorf("options %q: only one pool=NAME is known", query)
		}
	}
	pool := values.Get("pool")
	return pool, checkPool(pool)
}

// checkPool allows what is safe in the names of control records and in URLs.
func checkPool(pool string) error {
	if len(pool) > 64 {
		return fmt.Errorf("pool name %q has more than 64 characters", pool)
	}
	for i := range len(pool) {
		c := pool[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return fmt.Errorf("pool name %q: want [A-Za-z0-9][A-Za-z0-9._-]*", pool)
		}
	}
	return nil
}

// unique refuses a server that is named twice: two slots of one pool on one
// server would look like two failure domains.
func unique(servers []string) error {
	seen := make(map[string]bool, len(servers))
	for _, s := range servers {
		if seen[s] {
			return fmt.Errorf("server %s is named twice", s)
		}
		seen[s] = true
	}
	return nil
}
