package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Params of the methods. status takes none and gives a Status; list takes none
// and gives []VolumeInfo; info takes Named and gives a VolumeInfo; where gives a
// PlaceInfo; umount gives nothing; the others give nothing.
type (
	// Named is the params of info and remove.
	Named struct {
		Name string `json:"name"`
	}
	// CreateParams of create.
	CreateParams struct {
		Name string `json:"name"`
		Size int64  `json:"size_bytes"`
	}
	// ResizeParams of resize.
	ResizeParams struct {
		Name        string `json:"name"`
		Size        int64  `json:"size_bytes"`
		AllowShrink bool   `json:"allow_shrink"`
	}
	// WhereParams of where.
	WhereParams struct {
		Name   string `json:"name"`
		Offset int64  `json:"offset_bytes"`
	}
	// SetParams of set.
	SetParams struct {
		Name      string `json:"name"`
		IOTimeout int64  `json:"io_timeout_ms"` // 0: wait for ever
	}
	// BreakParams of break.
	BreakParams struct {
		Name  string `json:"name"`
		Force bool   `json:"force"`
	}
	// UmountParams of umount.
	UmountParams struct {
		Force bool `json:"force"`
	}
)

// method serves one call. progress may be called until it returns.
type method func(ctx context.Context, params json.RawMessage, progress func(Progress)) (any, error)

// bind makes a method of a function with typed params.
func bind[P any](f func(ctx context.Context, p P, progress func(Progress)) (any, error)) method {
	return func(ctx context.Context, raw json.RawMessage, progress func(Progress)) (any, error) {
		var p P
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &p); err != nil {
				return nil, fmt.Errorf("%w: params of the call: %v", stack.ErrInput, err)
			}
		}
		return f(ctx, p, progress)
	}
}

// volumeMethods are the calls about volumes. resized tells the kernel of a new
// size and forgets what was remembered of the catalogue, setTimeout is for now and for later opens.
func volumeMethods(v Volumes, resized func(volume string), setTimeout func(volume string, d time.Duration)) map[string]method {
	return map[string]method{
		"list": bind(func(ctx context.Context, _ struct{}, _ func(Progress)) (any, error) { return v.List(ctx) }),
		"info": bind(func(ctx context.Context, p Named, _ func(Progress)) (any, error) { return v.Info(ctx, p.Name) }),
		"create": bind(func(ctx context.Context, p CreateParams, _ func(Progress)) (any, error) {
			err := v.Create(ctx, p.Name, p.Size)
			resized(p.Name)
			return nil, err
		}),
		"resize": bind(func(ctx context.Context, p ResizeParams, _ func(Progress)) (any, error) {
			if err := v.Resize(ctx, p.Name, p.Size, p.AllowShrink); err != nil {
				return nil, err
			}
			resized(p.Name)
			return nil, nil
		}),
		"remove": bind(func(ctx context.Context, p Named, progress func(Progress)) (any, error) {
			err := v.Remove(ctx, p.Name, func(done, total int64) { progress(Progress{Done: done, Total: total}) })
			resized(p.Name)
			return nil, err
		}),
		"scrub": bind(func(ctx context.Context, p ScrubParams, progress func(Progress)) (any, error) {
			return v.Scrub(ctx, p, progress)
		}),
		"where": bind(func(ctx context.Context, p WhereParams, _ func(Progress)) (any, error) {
			return v.Where(ctx, p.Name, p.Offset)
		}),
		"break": bind(func(ctx context.Context, p BreakParams, _ func(Progress)) (any, error) {
			return nil, v.Break(ctx, p.Name, p.Force)
		}),
		"set": bind(func(ctx context.Context, p SetParams, _ func(Progress)) (any, error) {
			// Other errors are ignored: it is most wanted while a server does not answer.
			if _, err := v.Info(ctx, p.Name); errors.Is(err, pool.ErrNoVolume) {
				return nil, err
			}
			setTimeout(p.Name, time.Duration(p.IOTimeout)*time.Millisecond)
			return nil, nil
		}),
	}
}
