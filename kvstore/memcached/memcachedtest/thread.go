package memcachedtest

import "runtime"

// lockThread binds the goroutine to its thread; never unlocked, so that the
// thread ends with the goroutine.
func lockThread() { runtime.LockOSThread() }
