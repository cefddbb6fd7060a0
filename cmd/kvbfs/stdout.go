package main

import (
	"fmt"
	"os"
	"sync"
)

// stdout is what all verbs write their results to.
var stdout = new(output)

// output is os.Stdout and remembers that something could not be written: a result that got lost is no
// success, and who writes it does not look.
type output struct {
	mu  sync.Mutex
	err error // the first; guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	n, err := os.Stdout.Write(p)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

// status is the exit status of a verb that would end with status.
func (o *output) status(status int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil || status != 0 {
		return status
	}
	fmt.Fprintln(os.Stderr, "kvbfs: the output is lost:", o.err)
	return exitFailure
}
