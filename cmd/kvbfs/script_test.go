package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// TestMain lets scripts, and a mount that starts its own daemon, run this test
// program as kvbfs.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kvbfs": main})
}

// TestScript runs testdata/script: what users see for right and wrong input.
// Each script has its own state, runtime directory and store, and must leave
// nothing mounted.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			run := filepath.Join(e.WorkDir, "run")
			e.Setenv("KVBFS_RUNTIME_DIR", run)
			e.Setenv("KVBFS_STATE_DIR", filepath.Join(e.WorkDir, "state"))
			e.Setenv("KVBFS_STORE", "file://"+filepath.Join(e.WorkDir, "store"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("DEADPORT", strconv.Itoa(storetest.FreePort(t, 0)))
			e.Defer(func() { cleanUp(e.WorkDir) })
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "fuse":
				f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
				if err == nil {
					f.Close()
				}
				return err == nil && os.Geteuid() == 0, nil
			case "loop":
				_, err := os.Stat("/dev/loop-control")
				return err == nil && os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status":    exitStatusCmd,
			"lines":     linesCmd,
			"clean":     cleanCmd,
			"signal":    signalCmd,
			"hold":      holdCmd,
			"waitend":   waitEndCmd,
			"memcached": memcachedCmd,
		},
	})
}

// cleanUp ends what a failed script left: daemons by pid, then their mounts.
func cleanUp(dir string) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		real = dir
	}
	for _, m := range scriptMounts(dir) {
		if p, err := os.FindProcess(m.PID); err == nil {
			_ = p.Signal(syscall.SIGCONT)
			_ = p.Signal(syscall.SIGKILL)
		}
	}
	for _, m := range daemon.KVBFSMounts() {
		if strings.HasPrefix(m, real+"/") {
			_ = daemon.Detach(m)
		}
	}
}

// scriptMounts lists the live daemons of a script.
func scriptMounts(dir string) []daemon.Mount {
	cmd := exec.Command(os.Args[0])
	cmd.Args[0] = "kvbfs"
	old := os.Getenv("KVBFS_RUNTIME_DIR")
	// Scripts of this package do not run in parallel with other tests that read it.
	os.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(dir, "run"))
	defer os.Setenv("KVBFS_RUNTIME_DIR", old)
	list, _ := daemon.Mounts()
	return list
}

// exitStatusCmd: status N kvbfs ARGS... runs kvbfs and wants exit status N. Its
// output is then in files out and err of the script's directory.
func exitStatusCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e, ok := err.(*exec.ExitError); ok {
		got = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(ts.ReadFile("stdout")), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("err"), []byte(ts.ReadFile("stderr")), 0o600))
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	if strings.Contains(ts.ReadFile("stderr"), "goroutine ") {
		ts.Fatalf("a stack trace reached the user")
	}
}

// linesCmd: lines FILE N wants exactly N lines.
func linesCmd(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	if got := strings.Count(ts.ReadFile(args[0]), "\n"); got != want {
		ts.Fatalf("%s has %d lines, want %d", args[0], got, want)
	}
}

// cleanCmd wants nothing in the registry and nothing mounted.
func cleanCmd(ts *testscript.TestScript, _ bool, _ []string) {
	dir := ts.MkAbs(".")
	left, err := filepath.Glob(filepath.Join(dir, "run/mounts/*"))
	ts.Check(err)
	if len(left) > 0 {
		ts.Fatalf("left in the registry: %v", left)
	}
	for _, m := range daemon.KVBFSMounts() {
		if strings.HasPrefix(m, dir+"/") {
			ts.Fatalf("still mounted: %s", m)
		}
	}
}

// signalCmd: signal NAME DIR sends a signal to the daemon that serves DIR.
func signalCmd(ts *testscript.TestScript, _ bool, args []string) {
	sig, ok := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL,
		"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	pid := 0
	for _, m := range scriptMounts(ts.MkAbs(".")) {
		if m.Dir == ts.MkAbs(args[1]) {
			pid = m.PID
		}
	}
	if pid == 0 {
		ts.Fatalf("no daemon serves %s", args[1])
	}
	ts.Setenv("PID", strconv.Itoa(pid))
	ts.Check(syscall.Kill(pid, sig))
}

// waitEndCmd waits until the process $PID of the last signal has ended.
func waitEndCmd(ts *testscript.TestScript, _ bool, _ []string) {
	pid, err := strconv.Atoi(ts.Getenv("PID"))
	ts.Check(err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// The first thread may end before the others, which hold files and locks.
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") && len(tasks) <= 1 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("process %d still lives", pid)
		}
	}
}

// holdCmd: hold FILE keeps a file open in a process of its own; ! hold lets go.
func holdCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		pid, err := strconv.Atoi(ts.Getenv("HOLDER"))
		ts.Check(err)
		ts.Check(syscall.Kill(pid, syscall.SIGKILL))
		ts.Setenv("PID", ts.Getenv("HOLDER"))
		waitEndCmd(ts, false, nil)
		return
	}
	cmd := exec.Command("sh", "-c", `exec 3<"$1" && echo open && exec sleep 60`, "sh", ts.MkAbs(args[0]))
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Setenv("HOLDER", strconv.Itoa(cmd.Process.Pid))
	ts.Defer(func() { cmd.Process.Kill(); cmd.Wait() })
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		ts.Fatalf("could not open %s: %v", args[0], err)
	}
}

// memcachedCmd: memcached SOCKET ARGS... runs a server for the length of the script;
// its process is $MEMCACHED.
func memcachedCmd(ts *testscript.TestScript, _ bool, args []string) {
	socket := args[0]
	cmd := exec.Command("memcached", append([]string{"-u", "root", "-s", socket}, args[1:]...)...)
	ts.Check(cmd.Start())
	ts.Setenv("MEMCACHED", strconv.Itoa(cmd.Process.Pid))
	ts.Defer(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 3000 {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("memcached does not answer on %s", socket)
}
