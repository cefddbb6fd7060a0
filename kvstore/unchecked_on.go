//go:build kvbfs_unchecked

package kvstore

// Unchecked is true in this build: for measurements only.
const Unchecked = true
