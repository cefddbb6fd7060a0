package daemon

import (
	"context"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// ScrubParams of scrub, whose result is a volume.Scrub.
type ScrubParams struct {
	Name    string `json:"name"`
	Rate    int64  `json:"rate_bytes_per_s"` // 0: no limit
	Restart bool   `json:"restart"`
}

// Scrub implements Volumes.
func (l Local) Scrub(ctx context.Context, p ScrubParams, progress func(Progress)) (volume.Scrub, error) {
	told := false
	return l.Volumes.Scrub(ctx, p.Name, volume.ScrubOptions{Rate: p.Rate, Restart: p.Restart, Progress: func(s volume.Scrub) {
		if progress == nil {
			return
		}
		if !told && s.Resumed > 0 {
			progress(Progress{Text: fmt.Sprintf("going on at block %d of %d, where the scrub of %s stopped",
				s.Resumed, s.Blocks, s.Begun.Local().Format("2006-01-02 15:04:05"))})
		}
		told = true
		progress(Progress{Done: int64(s.Next), Total: int64(s.Blocks)})
	}})
}

// Scrub implements Volumes. Who hangs up interrupts it.
func (r Remote) Scrub(ctx context.Context, p ScrubParams, progress func(Progress)) (out volume.Scrub, err error) {
	return out, CallProgress(ctx, r.Mount, "scrub", p, &out, progress)
}
