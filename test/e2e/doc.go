// Package e2e holds the tests of the whole system: the real binary, real
// servers, the kernel's FUSE and loop drivers, real file systems and tools.
//
// Most of them carry the build tag e2e and run with
//
//	go test -tags e2e -count=1 -v -timeout 45m ./test/e2e/...
//
// Without the tag a smoke test is left that every `go test` can afford. A test
// that lacks a tool or a privilege skips and says which; where CI=true is set
// it fails instead, so that no test disappears unnoticed. Each test works in a
// scratch directory of its own with private state, runtime directories and
// servers, and the rig (package rig) takes everything down whatever happened.
//
// KVBFS_BIN names a binary to test instead of the one built from this tree;
// KVBFS_E2E_RACE=1 builds it with the race detector; KVBFS_SEED=n repeats the
// random choices of a run. KVBFS_TRANSPORT=uring makes every mount of the tests
// use FUSE over io_uring; TestURing does so for the most important ones in any
// case, where the kernel offers it. KVBFS_RIG_CACHE=SIZE makes every mount cache and
// read ahead; TestWithCache does so for tests of faults.
package e2e
