package memcached

import (
	"context"
	"strconv"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

const (
	// itemSize is what a block takes in a server: 48 bytes of item header, 8 of
	// CAS, the key with its zero, 4 of flags, 4096 and \r\n.
	itemSize = 48 + 8 + keyLen + 1 + 4 + kvstore.BlockSize + 2
	// pageSize is the unit in which memcached gives memory to slab classes.
	pageSize = 1 << 20
)

// stats are the answers of one server to one stats command.
type stats map[string]string

func (st stats) number(name string) int64 {
	n, _ := strconv.ParseInt(st[name], 10, 64)
	return n
}

func (s *server) stats(ctx context.Context, what string) (stats, error) {
	st := make(stats)
	cmd := strings.TrimSuffix("stats "+what, " ") + "\r\n"
	err := s.talk(ctx, []byte(cmd), func(in *lineReader) error {
		return in.stats(func(name, value string) { st[name] = value })
	})
	if err != nil {
		return nil, &kvstore.OpError{Op: "stats", Server: s.addr, Err: err}
	}
	return st, nil
}

// slabClass is the class in which the blocks of a server live.
type slabClass struct {
	chunk   int64 // bytes of a chunk; 0: the class is not in use yet
	perPage int64
	pages   int64
	used    int64 // chunks
}

// blockClass finds the smallest class in use that takes a block.
func blockClass(slabs stats) (c slabClass) {
	for name := range slabs {
		id, ok := strings.CutSuffix(name, ":chunk_size")
		if !ok {
			continue
		}
		chunk := slabs.number(name)
		if chunk < itemSize || (c.chunk != 0 && chunk >= c.chunk) {
			continue
		}
		c = slabClass{
			chunk:   chunk,
			perPage: slabs.number(id + ":chunks_per_page"),
			pages:   slabs.number(id + ":total_pages"),
			used:    slabs.number(id + ":used_chunks"),
		}
	}
	return c
}

// usage of one server. On a server without evictions what counts is pages: a
// page that a slab class has taken stays with it. So the capacity is the chunks of
// the blocks' class, and of the pages that nobody has yet.
func (s *server) usage(ctx context.Context) (u kvstore.Usage, err error) {
	general, err := s.stats(ctx, "")
	if err != nil {
		return u, err
	}
	slabs, err := s.stats(ctx, "slabs")
	if err != nil {
		return u, err
	}
	c := blockClass(slabs)
	if c.chunk == 0 {
		// No block and no ballast yet: what the recommended classes would give.
		c.perPage = pageSize / itemSize
	}
	free := max(general.number("limit_maxbytes")-slabs.number("total_malloced"), 0) / pageSize
	free += general.number("slab_global_page_pool")
	return kvstore.Usage{
		Capacity: (c.pages + free) * c.perPage * kvstore.BlockSize,
		Used:     c.used * kvstore.BlockSize,
		Blocks:   c.used,
	}, nil
}

// Usage implements kvstore.Store. Ballast counts as used.
func (s *Store) Usage(ctx context.Context) (sum kvstore.Usage, err error) {
	for _, srv := range s.servers {
		u, err := srv.usage(ctx)
		if err != nil {
			return kvstore.Usage{}, err
		}
		sum.Capacity += u.Capacity
		sum.Used += u.Used
		sum.Blocks += u.Blocks
	}
	return sum, nil
}
