package store

import "iter"

// queue is a first-in first-out list of entries on a ring that grows and shrinks by doubling.
type queue struct {
	ring []*entry
	head int
	n    int
}

func (q *queue) len() int { return q.n }

func (q *queue) push(e *entry) {
	if q.n == len(q.ring) {
		q.resize(max(64, 2*q.n))
	}
	q.ring[(q.head+q.n)%len(q.ring)] = e
	q.n++
}

func (q *queue) pop() *entry {
	e := q.ring[q.head]
	q.ring[q.head] = nil
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	if len(q.ring) > 64 && q.n < len(q.ring)/4 {
		q.resize(len(q.ring) / 2)
	}
	return e
}

func (q *queue) resize(size int) {
	ring := make([]*entry, size)
	i := 0
	for e := range q.all() {
		ring[i] = e
		i++
	}
	q.ring, q.head = ring, 0
}

// keep drops what does not pass.
func (q *queue) keep(pass func(*entry) bool) {
	kept := queue{}
	for e := range q.all() {
		if pass(e) {
			kept.push(e)
		}
	}
	*q = kept
}

func (q *queue) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for i := range q.n {
			if !yield(q.ring[(q.head+i)%len(q.ring)]) {
				return
			}
		}
	}
}
