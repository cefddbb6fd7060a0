package stack

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
)

func openMemcached(ctx context.Context, canonical string, cfg Config) (kvstore.Store, error) {
	mc, _, _, err := memcached.ParseURL(canonical)
	if err != nil {
		return nil, inputf("%v", err)
	}
	mc.Connections, mc.Log = cfg.Connections, cfg.Log
	st, err := memcached.Open(ctx, mc)
	if err != nil {
		return nil, err
	}
	return st, nil
}

func openFile(_ context.Context, canonical string, _ Config) (kvstore.Store, error) {
	dir := strings.TrimPrefix(canonical, "file://")
	if def, source := DefaultURL(); source == "default" && def == canonical {
		// Nobody named this place, so nobody can be asked to make its parents.
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return nil, err
		}
	}
	st, err := file.Open(dir, file.Options{})
	if err != nil {
		return nil, err
	}
	return st, nil
}

func openMem(context.Context, string, Config) (kvstore.Store, error) {
	return mem.New(mem.Config{}), nil
}
