//go:build race

package writeback

// newMemory returns memory that the race detector watches, which it does on the Go
// heap only.
func newMemory(n int) ([]byte, error) { return make([]byte, n), nil }

func freeMemory([]byte) error { return nil }
