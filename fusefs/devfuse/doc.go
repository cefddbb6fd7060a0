// Package devfuse takes FUSE requests from /dev/fuse, as many at a time as are
// there (fs/fuse/dev.c and uapi/linux/fuse.h name the protocol).
//
// # The nouns
//
//   - A clone is a descriptor of its own for one connection (FUSE_DEV_IOC_CLONE,
//     Linux 4.2): a request is answered where it was read, and clones share no
//     list of requests that are being served.
//   - An entry is one request with its buffers, from its arrival until its reply.
//   - A thread is one locked OS thread that reads requests.
//
// # The model
//
// A thread waits for a request in read(2) on one clone, which the kernel wakes one
// reader for, and takes what else is there from a second clone that does not wait.
// All of it is one batch, given to the [Handler] on this thread, which answers in
// place or keeps an entry and answers later from any goroutine ([Entry.Later]).
// Meanwhile the other threads read. Each reply is one write(2): that is what the
// protocol has. No lock is taken and nothing is allocated per request.
//
// Where a connection cannot be cloned (it was passed to us, and /dev/fuse may not
// be opened here) one thread serves, and waits in poll(2).
//
// # The traps
//
//   - A buffer for requests has to hold the largest WRITE, whatever comes.
//   - Descriptors stay open until every entry came back: a late reply to a number
//     that was given to another file would be written there.
//   - After INTERRUPT was answered with EAGAIN the kernel sends it again at once.
package devfuse
