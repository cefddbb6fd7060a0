# kvbfs. `make help` lists the targets.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BIN      = bin/kvbfs

# Versions of the tools that lint runs; they are not dependencies of kvbfs.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

FUZZTIME ?= 30s

# A process with the race detector sleeps a second when it ends, unless told; the
# tests start hundreds of children.
export GORACE ?= atexit_sleep_ms=0

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

.PHONY: test
test: deps lint ## lint, then unit, conformance and real-mount tests with the race detector
	$(GO) test -race -timeout 14m ./...

.PHONY: e2e
e2e: deps build ## whole system: FUSE, loop, ext4, XFS, btrfs, memcached
	KVBFS_BIN=$(abspath $(BIN)) $(GO) test -tags e2e -count=1 -timeout 45m -v ./test/e2e/...

.PHONY: race
race: deps ## everything that test runs, twice, with the race detector
	$(GO) test -race -count=2 -timeout 30m ./...

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 30s)
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

.PHONY: bench
bench: build ## micro-benchmarks of each layer, then fio on file and loop beside nbdfuse + nbdkit
	@test/deps.sh bench
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 0.5s ./...
	test/bench.sh $(BIN)

.PHONY: lint
lint: ## gofmt, vet, staticcheck and the rules of the house
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/...
	$(GO) run $(STATICCHECK) -tags e2e ./...
	$(GO) test -count=1 ./test/house/

.PHONY: install
install: build ## install into $(PREFIX)/bin
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/kvbfs

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
