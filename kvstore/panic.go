package kvstore

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrPanic: a bug in kvbfs ended the work on a request. The outcome of a write or
// discard is unknown then.
var ErrPanic = errors.New("internal error (panic, see the log)")

// PanicError is a panic that was contained. It wraps ErrPanic.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // of the goroutine, from the place of the panic on
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap makes it an ErrPanic.
func (e *PanicError) Unwrap() error { return ErrPanic }

// Contain calls f and returns its error; a panic in f is returned as a
// *PanicError, for the caller to log with its stack. What f holds (claims, gates,
// locks) it must give back itself, by defer.
//
// A goroutine that serves a disk must not end the process by a panic: a disk
// that vanishes takes the file system on it along.
func Contain(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}

// LogPanic logs err with its stack if it is a contained panic, and says whether
// it was one. what names the work that was cut off.
func LogPanic(log func(format string, args ...any), what string, err error) bool {
	var p *PanicError
	if !errors.As(err, &p) {
		return false
	}
	if log != nil {
		log("panic while %s: %v\n%s", what, p.Value, p.Stack)
	}
	return true
}
