package memcached

// fifo is a queue of requests that keeps its memory.
type fifo struct {
	items []*request
	head  int
}

func (q *fifo) len() int        { return len(q.items) - q.head }
func (q *fifo) front() *request { return q.items[q.head] }

// rest returns what is queued, in order; it is valid until the next call.
func (q *fifo) rest() []*request { return q.items[q.head:] }

func (q *fifo) push(r *request) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, r)
}

func (q *fifo) pop() *request {
	r := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return r
}

// pushFront puts all of rs before what is queued, in their order.
func (q *fifo) pushFront(rs []*request) {
	all := make([]*request, 0, len(rs)+q.len())
	all = append(all, rs...)
	q.items, q.head = append(all, q.rest()...), 0
}
