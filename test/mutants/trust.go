package mutants

// Leases are the planted bugs of leases that readers share and of what decides when
// a lease has run out.
var Leases = []Mutant{
	{
		Name: "a writer does not look at readers", File: "kvstore/pool/acquire.go",
		Old: "		return a.opt.steal || !a.readersLeft(r, now)\n", New: "		return a.opt.steal || !a.readersLeft(r, now) || true\n",
		Package: "kvstore/pool", Test: "TestReadersShare",
	},
	{
		Name: "a reader comes beside a writer", File: "kvstore/pool/shared.go",
		Old: "		case r != nil && r.held:\n			return 0,", New: "		case r != nil && r.held && a.opt.steal:\n			return 0,",
		Package: "kvstore/pool", Test: "TestReadersShare",
	},
	{
		Name: "a late reader does not see that somebody wrote", File: "kvstore/pool/upgrade.go",
		Old: "	return !r.held && r.generation == l.mine.generation\n", New: "	return !r.held\n",
		Package: "kvstore/pool", Test: "TestLateReader",
	},
	{
		Name: "a share takes its own upgrade for another holder", File: "kvstore/pool/upgrade.go",
		Old: "	if l.share.heir.is(r) {\n", New: "	if l.share.heir.is(r) && !r.held {\n",
		Package: "kvstore/pool", Test: "TestReadsDuringUpgrade",
	},
	{
		Name: "a share believes what it reads though its upgrade failed", File: "kvstore/pool/upgrade.go",
		Old: "		u.fence.Close()\n", New: "",
		Package: "kvstore/pool", Test: "TestFailedUpgrade",
	},
	{
		Name: "an upgrade that failed keeps the lease", File: "kvstore/volume/open.go",
		Old: "			lease.Abandon() // nothing was written\n", New: "",
		Package: "kvstore/volume", Test: "TestFailedUpgrade",
	},
	{
		Name: "what a crash left keeps its machine from reading beside others", File: "kvstore/volume/open.go",
		Old: "	if err != nil || !over {\n", New: "	if err != nil || !over || left {\n",
		Package: "kvstore/volume", Test: "TestReadBesideReadersAfterCrash",
	},
	{
		Name: "what is read past the read lease's deadline is believed", File: "kvstore/volume/believe.go",
		Old: "	return l != nil && !l.Fence().Passes()\n", New: "	return l != nil && !l.Fence().Passes() && l.Over() == nil\n",
		Package: "kvstore/volume", Test: "TestOvertakenReader",
	},
	{
		Name: "a lease runs out by the time of day", File: "kvstore/pool/acquire.go",
		Old: "	now := kvstore.Boottime()\n	last :=", New: "	now := a.lease.pool.opt.Now().UnixNano()\n	last :=",
		Package: "kvstore/pool", Test: "TestWallClocks",
	},
}

// Failovers are the planted bugs of a Redis that is replaced by one that missed its
// last writes.
var Failovers = []Mutant{
	{
		Name: "a replica that took over is taken for a new server", File: "kvstore/redis/history.go",
		Old: "	case !met && !known && !continues && !doubted && !n.owes():\n", New: "	case !met && !known && !doubted && (!continues && !n.owes() || n.store.cfg.Mode == Sentinel):\n",
		Package: "test/e2e", Test: "TestSentinel",
	},
	{
		Name: "what a replica that took over lacks is found and not told", File: "kvstore/redis/readback.go",
		Old: "	if lost == 0 {\n", New: "	if lost >= 0 {\n",
		Package: "test/e2e", Test: "TestSentinel",
	},
	{
		Name: "a flush does not ask the node that a slot moves to", File: "kvstore/redis/guests.go",
		Old: "{ return n.lodges() || n.serves() }\n", New: "{ return n.serves() }\n",
		Package: "kvstore/redis", Test: "TestFlushOfAGuest",
	},
	{
		Name: "what a slot's node lost while the slot moved is not looked for at the next one", File: "kvstore/redis/guests.go",
		Old: "	n.doubts.Add(1)\n", New: "",
		Package: "kvstore/redis", Test: "TestGuestMovesBack",
	},
}

// Mending are the planted bugs of scrub and repair.
var Mending = []Mutant{
	{
		Name: "a scrub believes what it saw before it had the claim", File: "kvstore/volume/scrub.go",
		Old:     "		if m != nil && !m.present(lba) {\n			return nil // discarded meanwhile\n		}\n		j.ch.Do(ctx, []*kvstore.Op{op})\n		class",
		New:     "		class",
		Package: "kvstore/volume", Test: "TestScrubBesideWriters",
	},
	{
		Name: "a scrub does not look at keys of absent blocks", File: "kvstore/volume/scrub.go",
		Old: "		case !j.was[i] && !errors.Is(op.Err, kvstore.ErrAbsent):\n", New: "		case false:\n",
		Package: "kvstore/volume", Test: "TestScrub",
	},
	{
		Name: "a scrub takes an old page of the map for the last one", File: "kvstore/volume/scrub_pages.go",
		Old: "		case on == there && !(on && j.stalePage(m, id, op.Data)), !on", New: "		case on == there, !on",
		Package: "kvstore/volume", Test: "TestScrubPages",
	},
	{
		Name: "a lost server is accepted for all volumes at once", File: "kvstore/pool/accept.go",
		Old: "			v.Damaged, v.Unaccepted = true, true\n", New: "			v.Damaged, v.Unaccepted = true, false\n",
		Package: "kvstore/pool", Test: "TestAcceptLost",
	},
	{
		Name: "a repair leaves what cannot be read in the map", File: "kvstore/volume/repair.go",
		Old: "		y.bad = func(lba uint64) { y.m.clear(lba, 1) }\n", New: "		y.bad = func(lba uint64) {}\n",
		Package: "kvstore/volume", Test: "TestRepairSingleBlocks",
	},
	{
		Name: "the look before the consent takes away what a crash left", File: "kvstore/volume/repair.go",
		Old: "	defer sf.leave()\n", New: "	defer sf.remove()\n",
		Package: "kvstore/volume", Test: "TestSurveyAfterCrash",
	},
	{
		Name: "a full server's word on ballast is taken", File: "kvstore/memcached/ballast.go",
		Old: "				full = append(full, i)\n", New: "				s.ballastLost(i)\n",
		Package: "kvstore/memcached", Test: "TestNewLayerOnAFullServer",
	},
	{
		Name: "a last close that is given up takes the local state away", File: "kvstore/volume/close.go",
		Old: "		return true, fmt.Errorf(", New: "		return false, fmt.Errorf(",
		Package: "kvstore/volume", Test: "TestLostCloseGivenUp",
	},
}
