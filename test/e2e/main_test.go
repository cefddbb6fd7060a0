package e2e

import (
	"testing"

	"github.com/kvbfs/kvbfs/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
