package redis

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

func TestIsDead(t *testing.T) {
	gone := exec.Command("true")
	want(t, gone.Run(), nil)
	prefix := family()
	own := ownName()
	if !strings.HasPrefix(own, prefix) || prefix == "" {
		t.Fatalf("own name %q, family %q", own, prefix)
	}
	for name, dead := range map[string]bool{
		own:              false,
		own + "-control": false,
		fmt.Sprintf("%s%d-1-abc", prefix, os.Getpid()):       true, // the number was given out again
		fmt.Sprintf("%s%d-55-abc", prefix, gone.Process.Pid): true,
		fmt.Sprintf("kvbfs-x-1-%d-55-abc", gone.Process.Pid): false, // of another machine
		prefix + "x-1-2": false, prefix: false, "": false, "redis-cli": false,
	} {
		if isDead(name, prefix) != dead {
			t.Errorf("%q is dead: %v", name, !dead)
		}
	}
}

// TestPredecessor: a connection of a process that was killed is still listed by the
// server. The first request of a successor, be it a read, comes after it is gone.
func TestPredecessor(t *testing.T) {
	gone := exec.Command("true")
	want(t, gone.Run(), nil)
	server := redistest.Start(t)
	left := server.Client.Conn()
	defer left.Close()
	ctx := context.Background()
	want(t, left.ClientSetName(ctx, fmt.Sprintf("%s%d-55-abc", family(), gone.Process.Pid)).Err(), nil)
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	if list := server.Do("CLIENT", "LIST").(string); strings.Contains(list, "-55-abc") {
		t.Errorf("read while the server still has the connection:\n%s", list)
	}
	if err := left.Ping(ctx).Err(); err == nil {
		t.Error("the dead process's connection lives")
	}
}
