package rig

import (
	"os"
	"os/exec"
	"testing"
)

// Require skips the test, with the reason, where a tool is missing; where
// CI=true it fails instead, so that a test cannot vanish unnoticed.
func Require(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			Missing(t, "%s is not installed (test/deps.sh installs what the tests use)", tool)
		}
	}
}

// RequireFUSE needs a /dev/fuse that this process may open.
func RequireFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		Missing(t, "FUSE is not available: %v", err)
		return
	}
	f.Close()
}

// RequireRoot needs root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "needs root")
	}
}

// RequireLoop needs root, FUSE and the loop driver.
func RequireLoop(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	RequireFUSE(t)
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		Missing(t, "loop devices are not available: %v", err)
		return
	}
	f.Close()
}

// Missing skips, or fails where CI=true.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
