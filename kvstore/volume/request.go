package volume

// RequestKind is what a request asks.
type RequestKind uint8

const (
	Read RequestKind = iota + 1
	Write
	Discard // drop the range: reads zeros afterwards, storage is freed
	Zero    // the range must read zeros (write-zeroes)
	Flush   // everything that was acknowledged before is stable afterwards
	// Provision stores what is a hole in the range as zeros, so that a later write
	// is an overwrite (provision.go). kvstore.ErrUnsupported where the store keeps
	// presence. After an error, what was provisioned stays.
	Provision
)

// Request is one request of a transport. The caller fills all but Err, keeps it
// alive until Do returns, and may use it again then.
type Request struct {
	Kind RequestKind
	Vol  *Volume
	Off  int64  // bytes, any alignment
	N    int64  // bytes of Discard, Zero and Provision; Read and Write go by Data
	Data []byte // read into or written from; never kept after Do
	Err  error  // nil means all of it was done
	Left bool   // after Worker.Try: still under way, Finish gives the result
	// Again: after Worker.LetGo: no result yet, and another worker has to be given it, as
	// it is.
	Again bool
	// Reader tells the open files apart that Reads come from, for reading ahead.
	Reader uint32

	done uint64 // how many blocks, from the first on, the worker has done that let it go
}

// MaxRequests is how many requests one Do takes.
const MaxRequests = 256
