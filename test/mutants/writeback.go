package mutants

// WriteBack are the planted bugs of write-back.
var WriteBack = []Mutant{
	{
		Name: "a flush does not store what was acknowledged before", File: "cache/writeback/channel.go",
		Old: "	if err := c.flight.drain(ctx, c.inner, l); err != nil {", New: "	if err := error(nil); err != nil {",
		Package: "cache/writeback", Test: "TestFlushDrains",
	},
	{
		Name: "a flush does not store what was acknowledged before, seen by the model", File: "cache/writeback/channel.go",
		Old: "	if err := c.flight.drain(ctx, c.inner, l); err != nil {", New: "	if err := error(nil); err != nil {",
		Package: "kvstore/volume", Test: "TestModelDeferred",
	},
	{
		Name: "the store is flushed before it has what was acknowledged", File: "cache/writeback/channel.go",
		Old:     "	if err := c.flight.drain(ctx, c.inner, l); err != nil {",
		New:     "	if err := c.inner.Flush(ctx, id); err != nil {\n		return err\n	}\n	if err := c.flight.drain(ctx, c.inner, l); err != nil || true {\n		l.seen.Store(err == nil)\n		return err\n	}\n	if err := error(nil); err != nil {",
		Package: "cache/writeback", Test: "TestFlushDrains",
	},
	{
		Name: "a flush does not wait for what is on its way over another channel", File: "cache/writeback/drain.go",
		Old: "		if wait == nil {\n			break", New: "		if true {\n			break",
		Package: "cache/writeback", Test: "TestFlushWaitsForFlying",
	},
	{
		Name: "a read does not see what is dirty", File: "cache/writeback/channel.go",
		Old: "			if l.read(op) {", New: "			if false && l.read(op) {",
		Package: "cache/writeback", Test: "TestReadsSeeDirty",
	},
	{
		Name: "a discard leaves what is dirty", File: "cache/writeback/channel.go",
		Old: "			if l.discard(", New: "			if false && l.discard(",
		Package: "cache/writeback", Test: "TestDiscardDropsDirty",
	},
	{
		Name: "a write passes the one of the same block that is on its way", File: "cache/writeback/channel.go",
		Old: "	if l.dirty(op.Key.Number) {", New: "	if false && l.dirty(op.Key.Number) {",
		Package: "cache/writeback", Test: "TestBlocksStayInOrder",
	},
	{
		Name: "writes are deferred before a flush was seen", File: "cache/writeback/channel.go",
		Old: "l.seen.Load() && c.passes(", New: "c.passes(",
		Package: "cache/writeback", Test: "TestWriteThroughUntilFlush",
	},
	{
		Name: "writes are deferred past the fence", File: "cache/writeback/channel.go",
		Old: "l.seen.Load() && c.passes(op.Fence) &&", New: "l.seen.Load() &&",
		Package: "cache/writeback", Test: "TestFence",
	},
	{
		Name: "a block that could not be stored is forgotten", File: "cache/writeback/table.go",
		Old: "	if e.drop || err == nil {", New: "	if e.drop || !errors.Is(err, kvstore.ErrAbsent) {",
		Package: "cache/writeback", Test: "TestFlushReportsErrors",
	},
	{
		Name: "a deferred write brings back what was discarded meanwhile", File: "kvstore/volume/settle.go",
		Old: "	if !s.op.Deferred && (!s.partial()", New: "	if (!s.partial()",
		Package: "kvstore/volume", Test: "TestDeferredAfterFlushedDiscard",
	},
	{
		Name: "a flush does not store what was acknowledged before, seen by a successor", File: "cache/writeback/channel.go",
		Old: "	if err := c.flight.drain(ctx, c.inner, l); err != nil {", New: "	if err := error(nil); err != nil {",
		Package: "test/sim", Test: "TestKilled",
	},
	{
		Name: "a flush leaves the newest block, seen by a successor", File: "cache/writeback/drain.go",
		Old: "	seq, share := l.sequence(), max(", New: "	seq, share := max(1, l.sequence())-1, max(",
		Package: "test/sim", Test: "TestKilled",
	},
	{
		Name: "a read does not see what is dirty, seen by porcupine", File: "cache/writeback/channel.go",
		Old: "			if l.read(op) {", New: "			if false && l.read(op) {",
		Package: "test/sim", Test: "TestLinearizable",
	},
	{
		Name: "a write changes the dirty block that is on its way", File: "cache/writeback/table.go",
		Old: "	if top != nil && !top.flying {", New: "	if top != nil {",
		Package: "test/sim", Test: "TestLinearizable",
	},
	{
		Name: "a flush leaves the newest block, seen in the log of the server", File: "cache/writeback/drain.go",
		Old: "	seq, share := l.sequence(), max(", New: "	seq, share := max(1, l.sequence())-1, max(",
		Package: "test/e2e", Test: "TestWriteBackOrder",
	},
}
