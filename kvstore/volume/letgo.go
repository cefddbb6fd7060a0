package volume

// LetGo may be called after Try has returned false. It gives back those of the requests
// left that have nothing under way and would only wait for others of their batch: the
// channel is busy as long as one server is silent, and what has to be sent next, after a
// read of half a block or the first blocks of a large request, cannot be sent over it;
// nor do requests begin whose volumes have another timeout. Their Again is set, Left is
// not; they hold nothing.
func (w *Worker) LetGo() {
	if w.sent {
		for i := range w.njobs {
			if j := &w.jobs[i]; j.req != nil {
				w.letGo(j)
			}
		}
		w.compact()
		w.finish(true)
	}
	for _, reqs := range w.later {
		for _, r := range reqs {
			r.Left, r.Again = false, true
		}
	}
	w.later = nil
}

// letGo lets a job go if it can begin again where it is. A block is not written twice
// for it: somebody may have seen the first write, and another one after it.
func (w *Worker) letGo(j *job) {
	if j.req.Kind != Read && j.req.Kind != Write {
		return
	}
	first := j.next
	for _, s := range w.active {
		switch {
		case s.job != j || s.phase == phaseDone:
		case s.op.Code != 0 || s.lead != nil:
			return // under way
		default:
			first = min(first, s.lba-j.cut.block(0).lba)
		}
	}
	failed := j.err != nil // finish tells
	switch {
	case failed:
	case j.req.Kind == Read:
		first = 0 // what was read may be in doubt: doubtful
	case j.next-first != uint64(j.inUse):
		return
	}
	for _, s := range w.active {
		if s.job == j && s.phase != phaseDone {
			w.done(s, nil)
		}
	}
	if failed {
		return
	}
	j.req.Left, j.req.Again, j.req.done = false, true, first
	j.vol.use.leave()
	*j = job{}
}
