module github.com/kvbfs/kvbfs/test/policies

go 1.26.0

require (
	github.com/hashicorp/golang-lru/arc/v2 v2.0.7
	github.com/hashicorp/golang-lru/v2 v2.0.7
	github.com/kvbfs/kvbfs v0.0.0
	github.com/maypok86/otter v1.2.4
	github.com/maypok86/otter/v2 v2.4.0
)

require (
	github.com/dolthub/maphash v0.1.0 // indirect
	github.com/gammazero/deque v0.2.1 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/kvbfs/kvbfs => ../..
