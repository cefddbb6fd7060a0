# kvbfs. `make help` lists the targets.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BIN      = bin/kvbfs

# Versions of the tools that lint runs; they are not dependencies of kvbfs.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
GOSEC       = github.com/securego/gosec/v2/cmd/gosec@v2.30.0

FUZZTIME ?= 30s
FUZZLOG   = bin/fuzz.log
FUZZED    = $(shell grep -rl --include=*_test.go '^func Fuzz' cache cmd fusefs kvstore losetup | xargs -n1 dirname | sort -u)
# GUIDES are the packages whose branches guide the fuzzers. `go test -fuzz` instruments the
# standard library too: some hundred thousand counters, to look at all of which takes
# far longer than an execution.
GUIDES    = github.com/kvbfs/kvbfs/... github.com/hanwen/go-fuse/v2/fuse net/url
# The state of open volumes belongs on tmpfs: elsewhere opening one takes many times as long.
FUZZENV   = GOGC=off GOMEMLIMIT=300MiB $(if $(wildcard /dev/shm),TMPDIR=/dev/shm)

# A process with the race detector sleeps a second when it ends, unless told; the
# tests start hundreds of children.
export GORACE ?= atexit_sleep_ms=0

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: $(BIN) ## build bin/kvbfs (static, no cgo)

# Always asked: the go tool knows better than make what is up to date.
.PHONY: $(BIN)
$(BIN):
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/kvbfs

.PHONY: demo
demo: build ## a disk on a key-value store, tried and cleaned up in seconds (Go, /dev/fuse, e2fsprogs)
	$(BIN) demo

.PHONY: deps
deps: # what the tests need, from the distribution
	@test/deps.sh test

# ALLOCATE are the packages with tests that count allocations.
ALLOCATE = $(shell grep -rl --include=*_test.go 'func Test[A-Za-z]*Allocat' cache cmd fusefs kvstore | xargs -n1 dirname | sort -u | sed 's,^,./,')

.PHONY: test
test: deps check ## check, then unit, conformance and real-mount tests with the race detector
	$(GO) test -race -timeout 20m ./...
	$(GO) test -count=1 -run Allocat $(ALLOCATE) # the race detector allocates
	$(MAKE) tikv SHORT=-short

# A module of its own: its client needs some forty others.
.PHONY: tikv
tikv: ## tests of the experimental TiKV store, against its client's mock
	cd kvstore/tikv && $(GO) vet ./... && $(GO) test $(SHORT) -timeout 10m ./...

.PHONY: build-tikv
build-tikv: ## bin/kvbfs-tikv: kvbfs with tikv:// (experimental)
	cd kvstore/tikv && CGO_ENABLED=0 $(GO) build -trimpath -overlay build/overlay.json -ldflags '$(LDFLAGS)' -o ../../$(BIN)-tikv github.com/kvbfs/kvbfs/cmd/kvbfs

# ONCE is what drives both transports by itself, or none: the second pass leaves it out.
ONCE = ^(TestPeers|TestPeersInterrupted|TestBenchCurves|TestBenchInterrupted|TestBenchRedis|TestBankFindsBugs|TestDemoInterrupted|TestBinary)$$
# -parallel is for the tests that wait for leases to end (mostlyWaits), not for processors.
E2E = $(GO) test -tags e2e -count=1 -timeout 40m -parallel 6 -v

.PHONY: e2e
e2e: deps build ## whole system on both transports: FUSE, loop, ext4, XFS, btrfs, memcached
	KVBFS_TRANSPORT=auto KVBFS_BIN=$(abspath $(BIN)) $(E2E) ./test/e2e/...
	KVBFS_TRANSPORT=dev KVBFS_BIN=$(abspath $(BIN)) $(E2E) -skip '$(ONCE)' ./test/e2e/...

# CYCLES is how often soak kills the daemon per file system, SOAK for how long one daemon is
# made to do everything again and again.
CYCLES ?= 50
SOAK   ?= 30m

.PHONY: soak
soak: deps build ## one daemon for SOAK (30m), the faults of the matrix at full length, CYCLES kills under sqlite on ext4 and XFS; both with write-back too
	KVBFS_SOAK=$(SOAK) KVBFS_BIN=$(abspath $(BIN)) $(GO) test -tags e2e -count=1 -timeout 24h -v -run 'TestSoak$$' ./test/e2e/
	KVBFS_E2E_LONG=1 KVBFS_BANK_CYCLES=$(CYCLES) KVBFS_E2E_CYCLES=$(CYCLES) KVBFS_BIN=$(abspath $(BIN)) $(GO) test -tags e2e -count=1 -timeout 24h -v \
	  -run 'TestBank|TestCrash$$|TestStopped|TestOtherServersGoOn|TestIOTimeoutInTime|TestRefusedAndMute|TestTakeover|TestClocks|TestAcceptLoss|TestAbort|TestFaultsOverRedis|TestSentinel' ./test/e2e/
	KVBFS_CACHE=writeback KVBFS_E2E_LONG=1 KVBFS_BANK_CYCLES=$(CYCLES) KVBFS_E2E_CYCLES=$(CYCLES) KVBFS_BIN=$(abspath $(BIN)) $(GO) test -tags e2e -count=1 -timeout 24h -v \
	  -run '$(WRITEBACK)' ./test/e2e/

# WRITEBACK is what of the fault matrix holds with write-back in every mount.
WRITEBACK = TestBank$$|TestModel$$|TestWriteBack(Crash|Outage|Full|Order)|TestBadLine|TestGhostWrite|TestDiscardStorm|TestStorm|TestServerEmptied|TestEmptiedServer|TestLostKeys|TestSpoiledBlocks|TestSilentServer|TestOutage|TestStopped|TestOtherServersGoOn|TestIOTimeoutInTime|TestRefusedAndMute|TestConnectionLimit|TestFewFiles|TestTakeover|TestSuccessor|TestAbort|TestPanic|TestMachineCrash|TestCrashFileSystem|TestFull$$|TestTwoDaemons|TestOtherMachine|TestResize|TestPartial|TestMirror|TestFioVerify|TestMemoryPressure|TestBackInTime|TestFaultsOverRedis

SEEDS ?= 1000
PREFIXES ?= 2000

.PHONY: sim
sim: ## SEEDS simulated histories (default 1000): servers that stop, links that are cut
	KVBFS_SIM_SEEDS=$(SEEDS) $(GO) test -count=1 -timeout 24h -v -run 'TestLinearizable|TestKilled|TestMetamorphic' ./test/sim/ | grep -v -e '^=== RUN' -e '^ *--- PASS'

.PHONY: crashlog
crashlog: deps build ## PREFIXES crashes per file system (default 2000), from a log of what memcached acknowledged
	KVBFS_CRASHLOG_PREFIXES=$(PREFIXES) KVBFS_BIN=$(abspath $(BIN)) $(GO) test -tags e2e -count=1 -timeout 24h -v -run TestCrashLog ./test/e2e/

.PHONY: mutants
mutants: deps ## plants bugs, one by one, and looks whether the tests notice
	KVBFS_MUTANTS=all $(GO) test -count=1 -timeout 60m -v ./test/mutants/

.PHONY: race
race: deps ## everything that test runs, twice, with the race detector
	$(GO) test -race -count=2 -timeout 30m ./...

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 30s), and how often it ran
	@mkdir -p bin; set -e; for d in $(FUZZED); do \
	  $(GO) test -c -o bin/fuzz.test $(GUIDES:%=-gcflags=%=-d=libfuzzer) ./$$d; \
	  names=$$(bin/fuzz.test -test.list '^Fuzz'); \
	  for f in $$names; do \
	    echo "== $$d $$f"; (cd $$d && $(FUZZENV) $(abspath bin)/fuzz.test -test.run '^$$' -test.fuzz "^$$f\$$" -test.fuzztime $(FUZZTIME) \
	      -test.fuzzminimizetime 10x -test.fuzzcachedir "$$($(GO) env GOCACHE)/fuzz/github.com/kvbfs/kvbfs/$$d") >$(FUZZLOG) 2>&1 || { cat $(FUZZLOG); exit 1; }; \
	    sed -n 's/.*execs: \([0-9]*\).*/\1 executions/p' $(FUZZLOG) | tail -1; \
	  done; done

# Results of measurements; `make figures` draws them.
FIGURES = docs/figures
FROM   ?= $(FIGURES)/bench.json
ROUNDS ?= 5
# SIZE of each of the nine volumes that bench fills. Far more than the caches of a CPU is
# enough; with 1G the host of a virtual machine may be measured, which is slow to give memory.
SIZE   ?= 256M

.PHONY: bench
bench: build ## micro-benchmarks of each layer, then each layer's limit and the whole (kvbfs bench)
	@test/deps.sh bench
	@mkdir -p $(FIGURES)
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 0.5s ./...
	$(BIN) bench --rounds $(ROUNDS) --size $(SIZE) --json $(FIGURES)/bench.json --html bin/bench.html

.PHONY: bench-peers
bench-peers: build ## the same fio jobs beside nbdfuse, qemu-storage-daemon, a loop file and a naive file system
	@test/deps.sh bench
	@mkdir -p $(FIGURES)
	$(GO) run ./test/peers --kvbfs $(BIN) -- --rounds $(ROUNDS) --json $(FIGURES)/peers.json --html bin/peers.html

.PHONY: bench-curves
bench-curves: build ## how cost grows with depth, jobs, workers, connections, servers, size, volumes
	@test/deps.sh bench
	@mkdir -p $(FIGURES)
	$(BIN) bench --curves --rounds $(ROUNDS) --seconds 1 --json $(FIGURES)/curves.json --html bin/curves.html

.PHONY: bench-unchecked
bench-unchecked: build ## kvbfs beside a build without checksums, presence map and fences
	@test/deps.sh bench
	ROUNDS=$(ROUNDS) test/bench-unchecked.sh $(BIN)

# PAIRS is how many pairs of runs each figure of bench-cache comes from.
PAIRS ?= 11

.PHONY: bench-cache
bench-cache: build ## a miss, reading again, reading ahead, writing back: with and without, in PAIRS alternating pairs
	@test/deps.sh bench
	@KVBFS_MEASURE=1 KVBFS_PAIRS=$(PAIRS) KVBFS_BIN=$(abspath $(BIN)) $(GO) test -tags e2e -count=1 -timeout 60m -v -run 'TestCacheFigures' ./test/e2e/ \
	  >bin/bench-cache.log 2>&1 || { cat bin/bench-cache.log; exit 1; }
	@sed -n 's/.*FIGURE //p' bin/bench-cache.log

.PHONY: figures
figures: ## draws docs/figures/*.svg and writes the tables of the documentation from FROM
	$(GO) run ./cmd/internal/figures --from $(FROM)

.PHONY: cluster-up
cluster-up: ## a Redis Cluster of 3 masters and 3 replicas on this machine (ports 7000 to 7005)
	@test/cluster.sh up

.PHONY: cluster-down
cluster-down: ## ends it; its data is gone
	@test/cluster.sh down

# check is what every `make test` begins with; lint is it and what takes minutes, or the network.
.PHONY: check
check: ## gofmt, vet, staticcheck and the rules of the house
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/...
	$(GO) run $(STATICCHECK) -tags e2e ./...
	$(GO) test -count=1 ./test/house/

.PHONY: lint
lint: check gosec vuln ## check, gosec and govulncheck

# VULNDB is the database that govulncheck asks, or a copy of it: docs/security.md says how to make one.
VULNDB ?= https://vuln.go.dev

.PHONY: vuln
vuln: ## known vulnerabilities in what is called, by the TiKV store too (asks VULNDB)
	$(GO) run $(GOVULNCHECK) -db $(VULNDB) ./...
	cd kvstore/tikv && $(GO) run $(GOVULNCHECK) -db $(VULNDB) ./...

# Its program needs some hundred modules and minutes to build. Left out are
# the rules that mean what kvbfs is for, or that cannot tell right from wrong here; each was
# looked through (docs/security.md).
GOSEC_LEAVES_OUT = G103,G104,G115,G118,G122,G204,G301,G304,G306,G404,G702,G703

.PHONY: gosec
gosec: ## the rules of gosec that say something here
	$(GO) run $(GOSEC) -quiet -exclude-dir=test -exclude=$(GOSEC_LEAVES_OUT) ./...

.PHONY: install
install: build ## install into $(PREFIX)/bin
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/kvbfs

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
