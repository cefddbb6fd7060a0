//go:build !kvbfs_unchecked

package kvstore

// Unchecked is true in builds that measure what checksums, presence map and fences
// cost (test/bench-unchecked.sh). They must never hold data: a lost block would read
// as whatever there is.
const Unchecked = false
