package stack

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
	"github.com/kvbfs/kvbfs/kvstore/redis"
)

// source is an opened store and what its URL says beside the store itself.
type source struct {
	store   kvstore.Store
	url     string // canonical and masked
	pool    string // the pool's name on its servers, empty: the default one
	private bool   // it lives inside this process and is gone with it
}

// scheme is one kind of store that a URL can name.
type scheme struct {
	name    string
	example string
	// canonical returns the one spelling of a URL and the pool that it names. Its
	// error is an ErrInput.
	canonical func(raw string) (text, pool string, err error)
	open      func(ctx context.Context, canonical string, cfg Config) (kvstore.Store, error)
	private   bool
	hidden    bool // not listed: of use to developers only
}

// schemes are the stores of this build.
func schemes() []scheme {
	return append([]scheme{
		{name: "memcached", example: "memcached://host:11211,host2:11211/pool", canonical: canonicalMemcached, open: openMemcached},
		{name: "memcached+tls", example: "memcached+tls://host:11211/pool", canonical: canonicalMemcached, open: openMemcached},
		{name: "memcached+unix", example: "memcached+unix:///run/memcached.sock", canonical: canonicalMemcached, open: openMemcached},
		{name: "redis", example: "redis://host:6379/0", canonical: canonicalRedis, open: openRedis},
		{name: "rediss", example: "rediss://host:6379?ca=FILE", canonical: canonicalRedis, open: openRedis},
		{name: "redis+unix", example: "redis+unix:///run/redis.sock", canonical: canonicalRedis, open: openRedis},
		{name: "redis+sentinel", example: "redis+sentinel://NAME@host:26379", canonical: canonicalRedis, open: openRedis},
		{name: "redis+cluster", example: "redis+cluster://host:6379,host2:6379", canonical: canonicalRedis, open: openRedis},
		{name: "file", example: "file:///var/lib/kvbfs/store", canonical: canonicalFile, open: openFile},
		{name: "bolt", example: "bolt:///var/lib/kvbfs/store.db", canonical: canonicalBolt, open: openBolt},
		{name: "mem", example: "mem:", canonical: canonicalMem, open: openMem, private: true},
		{name: "null", example: "null:", canonical: canonicalNull, open: openNull, private: true, hidden: true},
	}, more()...)
}

// Schemes lists an example URL of each kind of store, for help and messages.
func Schemes() []string {
	var out []string
	for _, s := range schemes() {
		if !s.hidden {
			out = append(out, s.example)
		}
	}
	return out
}

// parsed is a store URL taken apart.
type parsed struct {
	scheme    scheme
	canonical string // with its secrets
	pool      string
}

func parse(raw string) (parsed, error) {
	known := "; stores are " + strings.Join(Schemes(), ", ")
	if raw == "" {
		return parsed{}, inputf("no store is named: --store or KVBFS_STORE must be a URL%s", known)
	}
	if strings.ContainsFunc(raw, unicode.IsControl) { // a path must not end early, nor a line of status
		return parsed{}, inputf("the store URL holds control characters")
	}
	name, _, ok := strings.Cut(raw, ":")
	if !ok {
		return parsed{}, inputf("%q is not a store URL%s", Mask(raw), known)
	}
	all := schemes()
	i := slices.IndexFunc(all, func(s scheme) bool { return s.name == strings.ToLower(name) })
	if i < 0 {
		return parsed{}, inputf("unknown kind of store %q%s", name, known)
	}
	text, pool, err := all[i].canonical(raw)
	if err != nil {
		return parsed{}, err
	}
	return parsed{scheme: all[i], canonical: text, pool: pool}, nil
}

// Canonical checks a store URL (empty: the default one) and returns its one
// spelling, masked. The error is an ErrInput.
func Canonical(raw string) (string, error) {
	if raw == "" {
		raw, _ = DefaultURL()
	}
	p, err := parse(raw)
	if err != nil {
		return "", err
	}
	return Mask(p.canonical), nil
}

// Private says whether a store URL names a store that lives inside the process
// that opens it, so that another process finds an empty one.
func Private(raw string) bool {
	p, err := parse(raw)
	return err == nil && p.scheme.private
}

// openStore opens the store of cfg.URL, not yet joined to a pool.
func openStore(ctx context.Context, cfg Config) (source, error) {
	raw := cfg.URL
	if raw == "" {
		raw, _ = DefaultURL()
	}
	p, err := parse(raw)
	if err != nil {
		return source{}, err
	}
	masked := Mask(p.canonical)
	st, err := p.scheme.open(ctx, p.canonical, cfg)
	if err == nil {
		st, err = withFaults(st)
	}
	if err != nil {
		return source{}, explain(masked, err)
	}
	return source{store: st, url: masked, pool: p.pool, private: p.scheme.private}, nil
}

// OpenStore opens the store of cfg.URL alone, without a pool: for who measures it.
// It is not joined, and the caller closes it.
func OpenStore(ctx context.Context, cfg Config) (kvstore.Store, error) {
	src, err := openStore(ctx, cfg)
	return src.store, err
}

// isPath says whether a URL names a file, in which a colon and an @ are characters as
// any others.
func isPath(raw string) bool {
	scheme, _, _ := strings.Cut(strings.ToLower(raw), ":")
	return strings.Contains(scheme, "unix") || strings.HasPrefix(scheme, "file") || strings.HasPrefix(scheme, "bolt")
}

// Mask takes the secrets out of a URL, well-formed or not: a password before the
// @, and the values of parameters that are named like a secret.
func Mask(raw string) string {
	head, query, hasQuery := strings.Cut(raw, "?")
	if at := strings.LastIndexByte(raw, '@'); at > len(head) && !isPath(raw) && !strings.Contains(raw[len(head):at], "=") {
		head, query, hasQuery = strings.Cut(raw[at:], "?") // that one was in the password
		head = raw[:at] + head
	}
	if start := strings.Index(head, "//"); start >= 0 {
		rest := head[start+2:]
		// The last @ before the path ends the user part; a password may hold others.
		authority, path, slash := strings.Cut(rest, "/")
		before := authority
		if !isPath(head) {
			before = rest // a host may be missing, and no pool has an @
		}
		if at := strings.LastIndexByte(rest, '@'); at > len(authority) && strings.Contains(before[:min(at, len(before))], ":") {
			authority, path, slash = rest[:at+1], rest[at+1:], false // a slash in the password
		}
		if at := strings.LastIndexByte(authority, '@'); at >= 0 {
			user, _, secret := strings.Cut(authority[:at], ":")
			if secret {
				user += ":***"
			}
			authority = user + authority[at:]
		}
		if slash {
			authority += "/"
		}
		head = head[:start+2] + authority + path
	}
	if !hasQuery {
		return head
	}
	pairs := strings.Split(query, "&")
	for i, p := range pairs {
		k, _, _ := strings.Cut(p, "=")
		for _, word := range []string{"pass", "secret", "token", "key", "auth"} {
			if strings.Contains(strings.ToLower(k), word) {
				pairs[i] = k + "=***"
				break
			}
		}
	}
	return head + "?" + strings.Join(pairs, "&")
}

func canonicalMemcached(raw string) (text, pool string, err error) {
	scheme, rest, _ := strings.Cut(raw, ":")
	if Mask(raw) != raw {
		// Here and not below, where errors quote pieces of the URL.
		return "", "", inputf("store URL %q: no user, password or key in the URL: %s names a file with user:password, %s one with a key", Mask(raw), EnvAuthFile, EnvKey)
	}
	_, pool, text, err = memcached.ParseURL(strings.ToLower(scheme) + ":" + rest)
	if err != nil {
		return "", "", inputf("%v", err)
	}
	if pool == "default" { // what it is called if the URL does not say
		text = strings.TrimSuffix(strings.TrimSuffix(text, "/default"), "?pool=default")
		pool = ""
	}
	return text, pool, nil
}

func canonicalRedis(raw string) (text, pool string, err error) {
	scheme, rest, _ := strings.Cut(raw, ":")
	l, err := redis.ParseURL(strings.ToLower(scheme) + ":" + rest)
	if err != nil {
		return "", "", inputf("store URL %q: %v", Mask(raw), err)
	}
	if l.Pool == "default" {
		l.Pool = "" // what it is called if the URL does not say
	}
	return l.Text, l.Pool, nil
}

func canonicalFile(raw string) (text, pool string, err error) {
	_, path, _ := strings.Cut(raw, ":")
	path = strings.TrimPrefix(path, "//localhost")
	if rest, ok := strings.CutPrefix(path, "//"); ok && strings.HasPrefix(rest, "/") {
		path = rest
	}
	if strings.HasPrefix(path, "//") || !filepath.IsAbs(path) {
		return "", "", inputf("%q names no directory: write file:///var/lib/kvbfs/store, three slashes and an absolute path", Mask(raw))
	}
	if strings.Contains(path, "?") {
		return "", "", inputf("a file store takes no parameters: %q", Mask(raw))
	}
	return "file://" + filepath.Clean(path), "", nil
}

func canonicalBolt(raw string) (text, pool string, err error) {
	_, path, _ := strings.Cut(raw, "://")
	if !filepath.IsAbs(path) || strings.HasSuffix(path, "/") || strings.Contains(path, "?") {
		return "", "", inputf("%q names no file: write bolt:///var/lib/kvbfs/store.db, three slashes and an absolute path", Mask(raw))
	}
	return "bolt://" + filepath.Clean(path), "", nil
}

func canonicalMem(raw string) (text, pool string, err error) {
	_, rest, _ := strings.Cut(raw, ":")
	if strings.Trim(rest, "/") != "" {
		return "", "", inputf("a store in memory takes no address: write mem: instead of %q", Mask(raw))
	}
	return "mem:", "", nil
}

func canonicalNull(raw string) (text, pool string, err error) {
	_, rest, _ := strings.Cut(raw, ":")
	if strings.Trim(rest, "/") != "" {
		return "", "", inputf("the store that keeps nothing takes no address: write null: instead of %q", Mask(raw))
	}
	return "null:", "", nil
}
