// Package kvstore is the contract between the layers of kvbfs: what a block is,
// how a batch of block operations is handed to a store, and what each answer
// means. It does no I/O itself; each store is a folder below this one.
//
// # The nouns
//
//   - A block is 4096 bytes, the unit of everything below the volume.
//   - A [Key] names one block: layer, kind, number (for a data block, the LBA).
//   - An [Op] is one read, write or discard of a block. It carries its own
//     expectation, its own buffer and its own error.
//   - A batch is the []*Op of one [Channel.Do]: all of it travels together, and
//     each operation succeeds or fails alone.
//   - A [Channel] is one worker's way into a [Store]: its own connections,
//     shared with nobody, used by one goroutine at a time.
//   - A server is one process of a store; a [Placement] says which server holds
//     which key.
//   - [Control] is the slow road beside the channels: small named records,
//     changed by compare-and-swap (catalogue, pool, leases).
//
// # The model
//
// A store promises per block, not per batch: operations of one batch may be
// executed in any order and in parallel, so a batch must not hold two
// operations on one key unless both are reads. Writes are acknowledged (Err nil)
// only when the server said that it stored the block. After any other error of
// a write or discard than the ones that say "nothing changed" (see errors.go)
// the outcome is unknown: the block is the old one or the new one, whole.
//
// # The traps
//
//   - A missing key and a hole look alike to a server. Stores report
//     [ErrAbsent]; only the volume, which has the presence map, may turn it into
//     zeros or into a loss.
//   - Buffers belong to the caller and come back to it when Do returns. A store
//     that needs data later (a retry, a second copy) copies it first.
//   - An outage is not an error: Do waits and retries until the context ends.
package kvstore

import "context"

// BlockSize is the size of every block in bytes. It equals the page size of the
// kernels we run on and the block size that loop devices are given.
const BlockSize = 4096

// MaxBatch is the largest number of operations that a caller may put into one
// [Channel.Do]. 1024 blocks are 4 MiB: four of FUSE's largest requests, and
// small enough for the replies to fit the socket buffers of one connection
// several times over, which bounds memory on both sides.
const MaxBatch = 1024

// Code says what an operation does.
type Code uint8

const (
	// Read fills Data with the block.
	Read Code = iota + 1
	// Write stores Data as the block, if Expect holds.
	Write
	// Discard removes Count blocks beginning at Key. A block that is absent
	// already is discarded with success.
	Discard
)

// Expect is what must hold about a block for a Write to be done. A write whose
// expectation fails changes nothing.
type Expect uint8

const (
	// Any writes whatever is there. Stores without Properties.Expects know only
	// this one. Where overwriting on a full store destroys the old value
	// (memcached's set), the store does it in two safe steps.
	Any Expect = iota
	// Present overwrites: if the block is absent the result is ErrAbsent.
	Present
	// Absent creates: if the block is there the result is ErrExists.
	Absent
	// Same overwrites if the block is still the version that Op.Version names:
	// ErrConflict if it is another one, ErrAbsent if it is gone.
	Same
)

// Op is one operation on one block. The caller fills everything but Err; the
// store fills Err, for a Read also Data (and Version if Versioned is set).
//
// An Op belongs to the caller. From the call of Do until its return nobody else
// may touch it or its Data.
type Op struct {
	Code   Code
	Expect Expect // Write only
	// Versioned asks a Read for the block's version, for a later write that
	// expects Same. Only where Properties.Expects.
	Versioned bool
	Key       Key
	// Count is the number of blocks that a Discard covers, 0 meaning 1. More
	// than one only where Properties.DiscardExtents.
	Count uint32
	// Seed starts the block's CRC32C: the checksum of the layer's uuid, so that a
	// block can never pass for one of another layer. See [Checksum].
	Seed uint32
	// Version is an opaque token of the store: filled by a Versioned read,
	// compared by a write that expects Same. After a successful write it is
	// stale: read it again.
	Version uint64
	// Data is exactly BlockSize bytes: read into by Read, taken from by Write,
	// unused by Discard. After a failed Read its content is undefined.
	Data []byte
	// Reader, if not 0, says that a Read may be answered from memory, and for whom:
	// reads of one open file carry one number, by which a cache finds out that they
	// follow on each other. With 0 the store itself is asked.
	Reader uint32
	// Fence, if not nil, is checked before each send of a Write or Discard, also
	// before a retry: once it is closed the result is ErrFenced.
	Fence *Fence
	// Vital asks for a Write of a new block that a full store with a reserve takes
	// it nevertheless, while there is some to spare.
	Vital bool
	// Deferrable allows that a Write that expects Present is acknowledged before it
	// is stored: until a Flush a crash leaves the block as it was. The caller knows
	// that the block exists. A store may ignore it.
	Deferrable bool
	// Deferred is set, with success, by a store that did so.
	Deferred bool
	// Err is the result: nil, or an error that errors.Is finds among the
	// sentinels of this package.
	Err error
}

// Channel is one worker's own way into a store: connections that nobody else
// uses. At most one call runs at a time; different channels are independent.
type Channel interface {
	// Do executes the batch and returns when every operation has its result.
	//
	// Operations to one server are pipelined: one write call for many requests,
	// one read call for many replies; writes of the batch are sent before its
	// reads. Servers are served in parallel. While a server does not answer, Do
	// retries on new connections until it does or ctx ends; what has no answer
	// then gets ErrAborted (cancelled) or ErrTimeout (deadline), within a second.
	//
	// A batch longer than MaxBatch, or an op that breaks the rules above, gets
	// ErrInvalid and is not sent; the others of its batch are not affected.
	// Do allocates nothing on the way of success.
	Do(ctx context.Context, ops []*Op)

	// Try is Do for a caller that has others to serve: it does not stay for a
	// server that keeps silent for longer than a short grace (a multiple of its
	// round trip). It returns true when every operation has its result. After
	// false some are still under way: their Err is ErrPending, they belong to the
	// store with their buffers, and only Finish may be called on the channel, or Try
	// without operations: it goes on with what is left until more of it has results,
	// or for some 100 ms, and returns true when all has.
	Try(ctx context.Context, ops []*Op) bool

	// Finish goes on with what Try left, as Do would: when it returns, the
	// pending operations have their results. Any goroutine may call it.
	Finish(ctx context.Context)

	// Flush makes every operation that was acknowledged before the call, on any
	// channel, as stable as Properties.Durability says, or says why it cannot.
	// For a store whose servers may be emptied it proves that they were not,
	// since the last flush: ErrServerLost if one was. layer names the volume's
	// layer; a store may flush more.
	Flush(ctx context.Context, layer LayerID) error

	// Close gives the connections back. No call may be in progress.
	Close() error
}

// Store is one key-value store: a server, a set of servers, or a directory.
// All methods may be called at any time by any goroutine, unless said.
type Store interface {
	// Properties never change while the store is open and cost nothing to ask.
	Properties() Properties

	// Servers returns the addresses in the order of the URL, at least one. The
	// index in this slice is the server number of Control and Placement. The
	// caller must not change the slice.
	Servers() []string

	// Control returns the slow road. It works before Join.
	Control() Control

	// Join tells the store where blocks live and how its servers prove who they
	// are. It is called once, before the first Channel.
	Join(p Placement) error

	// Channel opens a channel. It may connect lazily. ErrInvalid before Join.
	Channel(ctx context.Context) (Channel, error)

	// CreateLayer claims a layer id, on every server and for ever: ErrExists if
	// it was ever taken.
	CreateLayer(ctx context.Context, layer LayerID) error

	// RemoveLayer is called after the layer's last block was discarded. What the
	// store keeps per layer goes, except what keeps the id from being used again.
	// Where Properties.Presence, it also drops all blocks that are left, at once.
	RemoveLayer(ctx context.Context, layer LayerID) error

	// NextExtent returns the number of the first block at or after from that
	// exists (data true) or does not (data false); ErrAbsent when there is no
	// such block with data. Only where Properties.Presence, else ErrUnsupported.
	NextExtent(ctx context.Context, layer LayerID, from uint64, data bool) (uint64, error)

	// Allocated returns how many blocks the layer has. Only where
	// Properties.Presence, else ErrUnsupported.
	Allocated(ctx context.Context, layer LayerID) (uint64, error)

	// Usage returns the size and use of all servers together.
	Usage(ctx context.Context) (Usage, error)

	// Inspect looks for settings that endanger data or speed. An error means
	// that it could not look.
	Inspect(ctx context.Context) ([]Finding, error)

	// Silent says whether the server of a key left requests unanswered for
	// longer than the grace of Try and has not been heard of since. AnySilent says
	// whether there is such a server at all. Both cost an atomic load or two; they
	// are hints, for callers that would rather not wait behind such a server.
	Silent(k Key) bool
	AnySilent() bool

	// Rewinds grows whenever a server may have gone back in time: another one took
	// its place, or it came back with another past. It has grown before anything
	// that begins later is answered from that past; so who kept what it read before
	// forgets it. It costs an atomic load.
	Rewinds() uint64

	// Haunted says whether a change of a block, or of another one of its server (of a
	// cluster, whose blocks move between its nodes: of any), may still be executed though
	// it was given up: by us, or by a process of this machine that was killed. It is true
	// before the change that was given up has its result. Who keeps what he reads keeps
	// nothing that was asked for before it is false: later the block may be another one.
	// It costs an atomic load or two where there are none.
	Haunted(k Key) bool

	// Locate says where a key is and how to look at it by hand.
	Locate(k Key) Location

	// Close closes the control connections. All channels must be closed.
	Close() error
}

// Control is the slow road: records of up to MaxRecord bytes under text names,
// on one server each (the pool layer keeps the copies). Safe for concurrent use.
// Unlike a channel it does not retry: an outage gives ErrUnreachable.
type Control interface {
	// Get returns a record: ErrAbsent if there is none.
	Get(ctx context.Context, server int, name string) (Record, error)
	// Add creates a record: ErrExists if there is one.
	Add(ctx context.Context, server int, name string, value []byte) error
	// Swap replaces the record that old was read from: ErrConflict if it changed
	// meanwhile, ErrAbsent if it is gone. Versions may start again when a server
	// restarts, so records carry something random to compare as well.
	Swap(ctx context.Context, server int, name string, old Record, value []byte) error
	// Delete removes a record; one that is absent is removed with success.
	Delete(ctx context.Context, server int, name string) error
}

// MaxRecord is the largest value of a control record in bytes: what memcached
// takes by default, less a margin for its item header.
const MaxRecord = 1<<20 - 4096

// Record is a control record as read. Value belongs to the caller.
type Record struct {
	Value   []byte
	Version uint64 // opaque token for Swap
}

// Placement says which server holds a key and by what id a server is known.
// Its methods are called on the data path: they must be fast, must not allocate
// and must be safe for concurrent use.
type Placement interface {
	// Server returns the server number of a key.
	Server(k Key) int
	// Sentinel returns the name and value of the control record by which a
	// server proves that it is the one that joined the pool. The store reads it
	// first on every new data connection, and at Flush on every server that was
	// written since the last one. An empty name: no proof is asked.
	Sentinel(server int) (name string, value []byte)
}

// Properties answer what a caller must know about a store.
type Properties struct {
	// Name is the store's kind as in its URL: "memcached", "file", "mem".
	Name string
	// Durability is what a flush achieves.
	Durability Durability
	// Presence: the store itself knows which blocks exist (NextExtent and
	// Allocated answer), so the volume keeps no map.
	Presence bool
	// ReportsAbsent: the read of an absent block is ErrAbsent. Otherwise it
	// fills Data with zeros and succeeds.
	ReportsAbsent bool
	// Expects: Present, Absent, Same and Versioned are honoured. Otherwise only
	// Any is allowed, the others being ErrUnsupported.
	Expects bool
	// Checksums: a corrupt or foreign block is ErrCorrupt, as a CorruptError.
	Checksums bool
	// DiscardExtents: a Discard may cover many blocks in O(extent).
	DiscardExtents bool
	// Reserve: on a full store, writes that expect Present or Same, and all
	// writes of other kinds than KindBlock, still succeed; for a while also those
	// that are Vital.
	Reserve bool
	// Shared: daemons on other machines may reach the same data.
	Shared bool
	// Volatile servers: a server may come back empty, so loss must be looked for.
	MayForget bool
}

// Durability is what an acknowledged flush survives.
type Durability uint8

const (
	// Volatile data survives our crash and our machine's, not the exit of the
	// server that holds it.
	Volatile Durability = iota
	// Server data survives the exit of the server as far as its own log goes.
	Server
	// Disk data survives what the local file system survives.
	Disk
)

// String returns the word that status and banners use.
func (d Durability) String() string {
	switch d {
	case Volatile:
		return "volatile"
	case Server:
		return "server"
	case Disk:
		return "disk"
	}
	return "unknown"
}

// Usage is the size and use of a store in bytes.
type Usage struct {
	Capacity int64 // what can be stored in all; 0: unknown
	Used     int64
	// Blocks is the number of items of block size that are stored, -1: unknown.
	Blocks int64
}

// Severity orders findings.
type Severity uint8

const (
	Info   Severity = iota
	Warn            // works, but slowly or wastefully
	Refuse          // data may be lost: a mount refuses unless told
)

// String returns "info", "warn" or "refuse".
func (s Severity) String() string { return [...]string{"info", "warn", "refuse"}[min(s, Refuse)] }

// Finding is one thing that Inspect found.
type Finding struct {
	Server   string // address
	Severity Severity
	What     string // what is the case, and what it causes
	Fix      string // what to do, a command or setting where there is one
}

// Location says where a block is, for people.
type Location struct {
	Server  string // address
	Key     string // as the store spells it
	Command string // one shell line that fetches the block by hand
}
