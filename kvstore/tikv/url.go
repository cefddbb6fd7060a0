package tikv

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// DefaultPort is PD's.
const DefaultPort = "2379"

// ParseURL takes tikv://host:2379,host2:2379/pool apart: the PD servers and the pool,
// empty if the URL names none. text is its one spelling.
func ParseURL(raw string) (cfg Config, pool, text string, err error) {
	_, rest, ok := strings.Cut(raw, "://")
	if !ok || strings.ContainsAny(rest, "?#@") {
		return cfg, "", "", fmt.Errorf("want tikv://host:%s,host2:%s/pool, without user or parameters", DefaultPort, DefaultPort)
	}
	hosts, pool, _ := strings.Cut(rest, "/")
	if strings.Contains(pool, "/") {
		return cfg, "", "", fmt.Errorf("%q is no name of a pool", pool)
	}
	for h := range strings.SplitSeq(hosts, ",") {
		u, err := url.Parse("tikv://" + h)
		if err != nil || u.Hostname() == "" {
			return cfg, "", "", fmt.Errorf("%q is no address: want host or host:port", h)
		}
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		addr := net.JoinHostPort(u.Hostname(), port)
		if slices.Contains(cfg.PD, addr) {
			return cfg, "", "", fmt.Errorf("%s is named twice", addr)
		}
		cfg.PD = append(cfg.PD, addr)
	}
	text = "tikv://" + strings.Join(cfg.PD, ",")
	if pool != "" {
		text += "/" + pool
	}
	return cfg, pool, text, nil
}
