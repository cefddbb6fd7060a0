package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"
)

// maxStacks bounds the goroutines of a dump, in bytes: they are grouped, so that
// thousands of requests in one place are one entry.
const maxStacks = 128 << 10

// dumpOnQuit logs the state of the daemon at each SIGQUIT, and goes on: what a disk
// waits for is asked while it waits. The returned function ends that.
func (s *server) dumpOnQuit() (stop func()) {
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGQUIT)
	over := make(chan struct{})
	go func() {
		for {
			select {
			case <-quit:
				_ = s.contained("describing the state", func() error { s.log("%s", s.dump()); return nil })
			case <-over:
				return
			}
		}
	}()
	return func() {
		signal.Stop(quit)
		close(over)
	}
}

// dump describes what the daemon is doing. It waits for the servers for a moment
// and for nothing else.
func (s *server) dump() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }
	fmt.Fprintf(&b, "state of process %d, which serves %s on %s (SIGQUIT):\n", os.Getpid(), s.mount.Store, s.mount.Dir)
	line("version %s, up for %v, %d goroutines, %d descriptors", s.cfg.Version, time.Since(s.mount.Started).Round(time.Second), runtime.NumGoroutine(), descriptors())
	up := s.serving.Load()
	if up == nil {
		line("it is still starting")
	} else {
		fs := up.fs.Status()
		line("%d requests served, %d in flight, the oldest for %v, %d lanes", fs.Requests, fs.InFlight, time.Duration(fs.OldestMS)*time.Millisecond, fs.Workers)
		for _, w := range fs.Waiting {
			line("for %v: %s", time.Duration(w.AgeMS)*time.Millisecond, w)
		}
		for _, v := range up.stack.Volumes.Dump() {
			line("%s", v)
		}
		ctx, cancel := context.WithTimeout(context.Background(), pingTime)
		for i, err := range up.stack.Unreachable(ctx) {
			state := "answers"
			if err != nil {
				state = err.Error()
			}
			line("server %s: %s", up.stack.Store.Servers()[i], state)
		}
		cancel()
	}
	if text := s.draining(); text != "" {
		line("ending: %s", text)
	}
	var stacks bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1) // to memory: it does not fail
	text := stacks.Bytes()
	if len(text) > maxStacks {
		text = append(text[:maxStacks:maxStacks], "\n(and more)\n"...)
	}
	b.Write(text)
	return b.String()
}

// descriptors counts those that are open; -1: not known.
func descriptors() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(fds) - 1 // of this look
}
