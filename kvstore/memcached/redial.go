package memcached

import "time"

// failAll ends everything that is queued or in flight.
func (c *conn) failAll(err error) {
	for c.flight.len() > 0 {
		c.ch.complete(c.flight.pop(), err)
	}
	for c.queue.len() > 0 {
		c.ch.complete(c.queue.pop(), err)
	}
}

// backoff: at once after the first failure, then 10 ms doubled up to a second,
// each with a jitter so that many workers do not come back in step.
func backoff(failures int, jitter func(time.Duration) time.Duration) time.Duration {
	if failures == 0 {
		return 0
	}
	d := 10 * time.Millisecond << min(failures-1, 7)
	d = min(d, time.Second)
	return d/2 + jitter(d/2)
}
