package volume

import (
	"context"
	"time"
)

// pace holds a scan to a rate.
type pace struct {
	rate  int64 // bytes per second; 0: as fast as it goes
	began time.Time
	spent int64 // since began
}

// maxCredit is how far a scan that was held up may run ahead of its rate later.
const maxCredit = time.Second

// pay waits until so many bytes more fit the rate.
func (p *pace) pay(ctx context.Context, bytes int64) error {
	if p.rate <= 0 {
		if ctx.Err() != nil {
			return ctxErr(ctx)
		}
		return nil
	}
	now := time.Now()
	due := p.began.Add(time.Duration(float64(p.spent) / float64(p.rate) * float64(time.Second)))
	if p.spent == 0 || now.Sub(due) > maxCredit {
		p.began, p.spent, due = now, 0, now
	}
	p.spent += bytes
	due = p.began.Add(time.Duration(float64(p.spent) / float64(p.rate) * float64(time.Second)))
	t := time.NewTimer(time.Until(due))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctxErr(ctx)
	}
}

// batch is how many blocks to read at once, so that a slow scan does not come in
// bursts: a tenth of a second's worth, within 1 to scanBatch.
func (p *pace) batch(blockSize int64) uint64 {
	if p.rate <= 0 {
		return scanBatch
	}
	return uint64(min(max(p.rate/10/blockSize, 1), scanBatch))
}
