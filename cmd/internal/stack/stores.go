package stack

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/bolt"
	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
	"github.com/kvbfs/kvbfs/kvstore/null"
	"github.com/kvbfs/kvbfs/kvstore/redis"
)

func openMemcached(ctx context.Context, canonical string, cfg Config) (kvstore.Store, error) {
	mc, _, _, err := memcached.ParseURL(canonical)
	if err != nil {
		return nil, inputf("%v", err)
	}
	mc.Connections, mc.Log = cfg.Connections, cfg.Log
	run, err := RuntimeDir()
	if err != nil {
		return nil, err
	}
	mc.TraceDir = filepath.Join(run, "connections")
	if mc.TLS != nil {
		if mc.TLS, err = tlsConfig(); err != nil {
			return nil, err
		}
	}
	if mc.Auth, err = memcachedAuth(); err != nil {
		return nil, err
	}
	st, err := memcached.Open(ctx, mc)
	if err != nil {
		return nil, err
	}
	return st, nil
}

func openRedis(ctx context.Context, canonical string, cfg Config) (kvstore.Store, error) {
	l, err := redis.ParseURL(canonical)
	if err == nil {
		err = l.Secrets()
	}
	if err != nil {
		return nil, inputf("store %s: %v", canonical, err)
	}
	l.Connections, l.Log = cfg.Connections, cfg.Log
	l.WaitReplicas, l.WaitAOF = cfg.WaitReplicas, cfg.WaitAOF
	st, err := redis.Open(ctx, l.Config)
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

func openBolt(_ context.Context, canonical string, _ Config) (kvstore.Store, error) {
	st, err := bolt.Open(strings.TrimPrefix(canonical, "bolt://"))
	if err != nil {
		return nil, err
	}
	return st, nil
}

func openMem(context.Context, string, Config) (kvstore.Store, error) {
	return mem.New(mem.Config{}), nil
}

// openNull opens the store that keeps nothing: `kvbfs bench` measures what is
// above a store with it.
func openNull(context.Context, string, Config) (kvstore.Store, error) {
	return null.New(), nil
}
