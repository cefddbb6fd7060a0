package mutants

// All are the planted bugs, each with the cheapest test that must notice it.
var All = []Mutant{
	{
		Name: "one write in 97 is dropped", File: "fusefs/inplace.go",
		Old: "	return r.enter(calls, hotCall{e: e, h: h, slot: r.d.flying.enter(volume.Write, v,",
		New: "	if off>>12%97 == 0 {\n		binary.NativeEndian.PutUint64(e.Buffer(), uint64(len(data)))\n		e.Reply(0, 8)\n		return calls\n	}\n" +
			"	return r.enter(calls, hotCall{e: e, h: h, slot: r.d.flying.enter(volume.Write, v,",
		Package: "fusefs", Test: "TestReadWrite",
	},
	{
		Name: "a short reply to a write", File: "fusefs/inplace.go",
		Old: "PutUint32(out, uint32(n))", New: "PutUint32(out, uint32(n+1)/2)",
		Package: "fusefs", Test: "TestWholeReplies",
	},
	{
		Name: "fsync does nothing", File: "fusefs/data.go",
		Old: "v == nil || !v.Writable() { // nothing", New: "true || v == nil || !v.Writable() { // nothing",
		Package: "fusefs", Test: "TestFsyncIsAFlush",
	},
	{
		Name: "zeros for a lost block", File: "kvstore/volume/settle.go",
		Old:     "		default:\n			w.done(s, v.reportLost(ctx, s.lba))\n		}",
		New:     "		default:\n			w.holeRead(s)\n		}",
		Package: "kvstore/volume", Test: "TestLostIsNeverAHole",
	},
	{
		Name: "no claim around read-modify-write", File: "kvstore/volume/slot.go",
		Old:     "	if !w.set.claims.try(i, w.id) {\n		return false\n	}\n	s.claim = i\n",
		New:     "	if s.phase == phaseModify {\n		s.claim = -1\n	} else if !w.set.claims.try(i, w.id) {\n		return false\n	} else {\n		s.claim = i\n	}\n",
		Package: "kvstore/volume", Test: "TestNeighbours",
	},
	{
		Name: "a flush stores no page of the map", File: "kvstore/volume/flush.go",
		Old: "	return v.storeDirty(ctx, ch, m)\n", New: "	return nil\n",
		Package: "kvstore/volume", Test: "TestWriteReadReopen",
	},
	{
		Name: "the first write of a range goes before its page of the map", File: "kvstore/volume/slot.go",
		Old: "if m != nil && stores && !m.hasPage(", New: "if false && m != nil && stores && !m.hasPage(",
		Package: "kvstore/volume", Test: "TestPageBeforeAck",
	},
	{
		Name: "set for replace", File: "kvstore/memcached/request.go",
		Old: `b = appendStore(b, "replace", r.key[:], flags)`, New: `b = appendStore(b, "set", r.key[:], flags)`,
		Package: "kvstore/memcached", Test: "TestConformance",
	},
	{
		Name: "a block's checksum is not looked at", File: "kvstore/memcached/direct.go",
		Old:     "	if flags != uint64(blockFlags(r.op.Seed, r.op.Key, r.op.Data)) {",
		New:     "	if flags == 1 {",
		Package: "kvstore/memcached", Test: "TestCorruptBlocks",
	},
	{
		Name: "a retry does not ask for the sentinel", File: "kvstore/memcached/conn.go",
		Old: `if c.server.sentinelKey == "" {`, New: `if c.server.sentinelKey == "" || c.failures > 0 {`,
		Package: "kvstore/memcached", Test: "TestEmptiedServer",
	},
	{
		Name: "a repeated add takes its own first try for somebody else's", File: "kvstore/memcached/conn.go",
		Old: "		r.repeated = true\n", New: "		r.repeated = false\n",
		Package: "kvstore/memcached", Test: "TestCutReplies",
	},
	{
		Name: "no waiting for what an old connection still holds", File: "kvstore/memcached/channel.go",
		Old: "		if haunted && c.haunt != nil {", New: "		if false && haunted && c.haunt != nil {",
		Package: "kvstore/memcached", Test: "TestGhostOfAnotherChannel",
	},
	{
		Name: "a fence is not looked at before a write is sent", File: "kvstore/memcached/conn.go",
		Old: "			if !r.op.Fence.Passes() {\n				c.ch.complete", New: "			if false {\n				c.ch.complete",
		Package: "kvstore/memcached", Test: "TestFenceClosesDuringOutage",
	},
	{
		Name: "TLS without verification", File: "kvstore/memcached/tls.go",
		Old: "	cfg := s.store.cfg.TLS.Clone()\n", New: "	cfg := s.store.cfg.TLS.Clone()\n	cfg.InsecureSkipVerify = true\n",
		Package: "kvstore/memcached", Test: "TestNoTrust",
	},
	{
		Name: "the buffer is kept after return", File: "kvstore/mem/server.go",
		Old: "	copy(e.data[:], op.Data)\n", New: "	e.data = (*[kvstore.BlockSize]byte)(op.Data)\n",
		Package: "kvstore/mem", Test: "TestConformance",
	},
	{
		Name: "fdatasync is left out", File: "kvstore/file/layer.go",
		Old: "	if err := fdatasync(l.fd); err != nil {", New: "	if err := error(nil); err != nil {",
		Package: "kvstore/file", Test: "TestFailedFlushSticks",
	},
	{
		Name: "a lease is taken from a holder that lives", File: "kvstore/pool/acquire.go",
		Old: "	if !held || a.opt.steal || a.gone(at, r == nil) {", New: "	if !held || a.opt.Wait >= 0 || a.gone(at, r == nil) {",
		Package: "kvstore/pool", Test: "TestLifeOfALease",
	},
	{
		Name: "fsync does nothing, seen from outside", File: "fusefs/data.go",
		Old: "v == nil || !v.Writable() { // nothing", New: "true || v == nil || !v.Writable() { // nothing",
		Package: "test/e2e", Test: "TestMachineCrash",
	},
	{
		Name: "the state file is not recovered", File: "kvstore/volume/recover.go",
		Old: "		if resumed {\n			return v.recover(ctx, ch, m, rec.MapHeight)\n		}\n", New: "		if resumed {\n			clear(m.bits[0])\n			return v.recover(ctx, ch, m, rec.MapHeight)\n		}\n",
		Package: "kvstore/volume", Test: "TestReadOnlyAfterCrash",
	},
	{
		Name: "the state file is not recovered, seen by fio", File: "kvstore/volume/recover.go",
		Old: "		if resumed {\n			return v.recover(ctx, ch, m, rec.MapHeight)\n		}\n", New: "		if resumed {\n			clear(m.bits[0])\n			return v.recover(ctx, ch, m, rec.MapHeight)\n		}\n",
		Package: "test/e2e", Test: "TestPowerCut",
	},
	{
		Name: "a connection is replaced before the old one is drained", File: "kvstore/memcached/conn.go",
		Old: "		if !c.haunt.Done() {\n			return\n		}\n", New: "",
		Package: "test/sim", Test: "TestLinearizable",
	},
	{
		Name: "no claim around read-modify-write, seen by porcupine", File: "kvstore/volume/slot.go",
		Old:     "	if !w.set.claims.try(i, w.id) {\n		return false\n	}\n	s.claim = i\n",
		New:     "	if s.phase == phaseModify {\n		s.claim = -1\n	} else if !w.set.claims.try(i, w.id) {\n		return false\n	} else {\n		s.claim = i\n	}\n",
		Package: "test/sim", Test: "TestLinearizable",
	},
	{
		Name: "the last piece of a request is taken from one byte before", File: "kvstore/volume/split.go",
		Old: "to: int(rest), at: n - rest}", New: "to: int(rest), at: n - rest - 1}",
		Package: "test/sim", Test: "TestMetamorphic",
	},
	{
		Name: "the cache does not hear that a server went back in time", File: "cache/channel.go",
		Old: "if c.store.inner.Rewinds() != c.store.rewinds.Load() {", New: "if false {",
		Package: "cache", Test: "TestRewind",
	},
	{
		Name: "a read that is under way fills the cache after a write of its block", File: "cache/table.go",
		Old:     "pinMask == pinMask {\n			t.kill(p, k)\n			return 0, false\n",
		New:     "pinMask == pinMask {\n			return 0, false\n",
		Package: "cache", Test: "TestChangeKillsFill",
	},
	{
		Name: "a read fills the cache during a write of its block", File: "cache/table.go",
		Old: "if s.writers.Load() != 0 || ", New: "if ",
		Package: "cache", Test: "TestNoFillDuringWrite",
	},
	{
		Name: "a write over the end is cut", File: "fusefs/inplace.go",
		Old:     "off > uint64(v.Size()) || int64(len(data)) > v.Size()-int64(off) {\n		r.cold.start(e)\n		return calls\n	}\n",
		New:     "off >= uint64(v.Size()) {\n		r.cold.start(e)\n		return calls\n	}\n	data = data[:min(int64(len(data)), v.Size()-int64(off))]\n",
		Package: "fusefs", Test: "FuzzRequests",
	},
	{
		Name: "the arguments of a cut request are taken as they lie there", File: "fusefs/inplace.go",
		Old:     "	if len(in) < 24 { // struct fuse_read_in up to size\n		e.Reply(int(fuse.EINVAL), 0)\n		return calls\n	}\n",
		New:     "	in = in[:24]\n",
		Package: "fusefs", Test: "FuzzRequests",
	},
	{
		Name: "a read believes what came before a discard", File: "kvstore/volume/settle.go",
		Old: "	case err == nil && s.job.m != nil && !s.job.m.present(s.lba):", New: "	case false:",
		Package: "kvstore/volume", Test: "TestDiscardInsideRead",
	},
}
