package wire

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Refuse answers all of a batch if it cannot begin at all, and says whether it did.
func Refuse(ctx context.Context, closed bool, ops []*kvstore.Op) bool {
	var err error
	switch {
	case closed:
		err = kvstore.ErrClosed
	case len(ops) > kvstore.MaxBatch:
		err = fmt.Errorf("%w: a batch of %d operations, at most %d", kvstore.ErrInvalid, len(ops), kvstore.MaxBatch)
	case ctx.Err() != nil:
		err = ContextError(ctx)
	default:
		return false
	}
	for _, op := range ops {
		op.Err = OpError(op, "", err)
	}
	return true
}

// Check looks for what the contract forbids, or what no server of ours can do.
func Check(op *kvstore.Op) error {
	switch {
	case op.Code < kvstore.Read || op.Code > kvstore.Discard:
		return fmt.Errorf("%w: code %d", kvstore.ErrInvalid, op.Code)
	case op.Key.Number > kvstore.MaxNumber:
		return fmt.Errorf("%w: number %d", kvstore.ErrInvalid, op.Key.Number)
	case op.Code != kvstore.Discard && len(op.Data) != kvstore.BlockSize:
		return fmt.Errorf("%w: %d bytes of data, want %d", kvstore.ErrInvalid, len(op.Data), kvstore.BlockSize)
	case op.Code == kvstore.Write && op.Expect > kvstore.Same:
		return fmt.Errorf("%w: expectation %d", kvstore.ErrInvalid, op.Expect)
	case op.Code == kvstore.Discard && op.Count > 1:
		return fmt.Errorf("%w: discard of %d blocks", kvstore.ErrUnsupported, op.Count)
	}
	return nil
}

// ContextError is the contract's word for why a context ended.
func ContextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}

// OpError says which operation failed, and on which server (empty: none).
func OpError(op *kvstore.Op, server string, err error) error {
	verb := "read"
	switch op.Code {
	case kvstore.Write:
		verb = "write"
	case kvstore.Discard:
		verb = "discard"
	}
	return &kvstore.OpError{Op: verb, Server: server, Key: op.Key, Err: err}
}
