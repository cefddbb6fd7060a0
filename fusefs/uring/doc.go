// Package uring carries FUSE requests over io_uring instead of read(2) and
// write(2) on /dev/fuse (Linux 6.14 and newer; fs/fuse/dev_uring.c and
// uapi/linux/fuse.h name the protocol).
//
// # The nouns
//
//   - A queue is the kernel's: one per possible CPU. A request comes in on the
//     queue of the CPU that its caller ran on.
//   - An entry is one slot of a queue: a header and a payload buffer that we
//     registered. It is either the kernel's (waiting for a request) or ours (from
//     the request's arrival until its reply is committed).
//   - A thread is one locked OS thread with one ring, serving one or more queues.
//
// # The model
//
// A thread loops: one io_uring_enter commits all replies that are ready, fetches
// the next requests with the same entries, and waits until at least one is
// there. All that arrived is one batch, given to the [Handler], which answers
// in place or keeps an entry and answers later from any goroutine
// ([Entry.Later]): it is posted to its thread through an eventfd, and only the
// thread touches its ring. No lock is taken and nothing is allocated per request.
//
// # The traps
//
//   - From the INIT reply on, the kernel blocks requests until every possible
//     CPU's queue has an entry registered: Start must follow at once.
//   - FORGET, INTERRUPT and notifications stay on /dev/fuse.
//   - The ring is made and entered by the same thread (SINGLE_ISSUER,
//     DEFER_TASKRUN), so completions run when we ask for them and not before.
package uring
