package wire

// Queue is a first-in-first-out queue that keeps its memory. The zero Queue is
// empty. One goroutine uses it.
type Queue[T any] struct {
	items []T
	head  int
}

// Len returns how many are queued.
func (q *Queue[T]) Len() int { return len(q.items) - q.head }

// Front returns the first; there must be one.
func (q *Queue[T]) Front() T { return q.items[q.head] }

// Rest returns what is queued, in order; it is valid until the next call.
func (q *Queue[T]) Rest() []T { return q.items[q.head:] }

// Push appends an item.
func (q *Queue[T]) Push(r T) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, r)
}

// Pop takes the first; there must be one.
func (q *Queue[T]) Pop() T {
	var none T
	r := q.items[q.head]
	q.items[q.head] = none
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return r
}

// PushFront puts all of rs before what is queued, in their order.
func (q *Queue[T]) PushFront(rs []T) {
	all := make([]T, 0, len(rs)+q.Len())
	all = append(all, rs...)
	q.items, q.head = append(all, q.Rest()...), 0
}

// Clear empties the queue and keeps its memory.
func (q *Queue[T]) Clear() {
	clear(q.items)
	q.items, q.head = q.items[:0], 0
}

// Take empties the queue and returns what was queued. The memory goes with it.
func (q *Queue[T]) Take() []T {
	rest := q.Rest()
	*q = Queue[T]{}
	return rest
}
