// Package doctor looks for what kvbfs needs and lacks on this machine and in a
// store, and says how to get it.
//
// Each check is a function that returns findings; it changes nothing and is
// bounded in time. It looks into no mount that a daemon of ours serves. What it finds is graded by what it costs: fail
// means that kvbfs cannot serve at all here, warn that something works badly or
// that a part (loop devices, mkfs) is missing.
package doctor

import (
	"context"

	"golang.org/x/sys/unix"
)

// Level grades a finding.
type Level string

const (
	OK   Level = "ok"
	Info Level = "info" // good to know
	Warn Level = "warn" // something is missing, slow or risky
	Fail Level = "fail" // what was asked for cannot work
)

// Finding is one thing that was looked at.
type Finding struct {
	Area  string `json:"area"` // kernel, fuse, loop, privileges, tools, memory, store
	Level Level  `json:"level"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"` // a command or setting
}

// report collects the findings of one area.
type report struct {
	area string
	list []Finding
}

func (r *report) add(l Level, what, fix string) {
	r.list = append(r.list, Finding{r.area, l, what, fix})
}

// Machine looks at this machine.
func Machine(ctx context.Context) []Finding {
	var out []Finding
	for _, check := range []func() []Finding{kernel, fuseDevice, fuseUnprivileged, loop, privileges, memory, tools, leftovers} {
		if ctx.Err() != nil {
			break
		}
		out = append(out, check()...)
	}
	return out
}

// Failed says whether something that is needed is missing.
func Failed(list []Finding) bool {
	for _, f := range list {
		if f.Level == Fail {
			return true
		}
	}
	return false
}

// hasCapability says whether this process has a capability in effect.
func hasCapability(number uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[number/32].Effective&(1<<(number%32)) != 0
}
