package wire

import (
	"context"
	"sync/atomic"
	"time"
)

// Elsewhere asks a server that is silent on one connection whether it answers on
// another. If it does not, the silent connection is kept: what the server holds of it
// will be executed and answered there, before anything that is sent later. The zero
// Elsewhere has asked nothing; the connection's owner alone uses it.
type Elsewhere struct{ asked *question }

type question struct {
	began  time.Time
	answer atomic.Int32
}

const (
	unanswered = iota
	lives
	dead
)

// elsewherePause is how long an answer counts before it is asked again, and how long a
// connection has to speak after the server did so elsewhere.
const elsewherePause = time.Second

// Answers says that the server answered elsewhere and still keeps silent here, so
// that the connection is of no use. It begins to ask if that was not done lately;
// live is called beside the data path.
func (e *Elsewhere) Answers(now time.Time, h *Helpers, live func(context.Context) bool) bool {
	if e.asked == nil {
		e.ask(h, live)
		return false
	}
	if now.Sub(e.asked.began) <= elsewherePause {
		return false
	}
	switch e.asked.answer.Load() {
	case lives:
		return true
	case dead:
		e.ask(h, live)
	}
	return false
}

func (e *Elsewhere) ask(h *Helpers, live func(context.Context) bool) {
	q := &question{began: time.Now()}
	e.asked = q
	h.Go(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		answer := int32(dead)
		defer func() { q.answer.Store(answer) }() // a panic of live is no answer
		if live(ctx) {
			answer = lives
		}
	})
}
