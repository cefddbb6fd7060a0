module github.com/kvbfs/kvbfs/test/policies

go 1.26.0

require (
	github.com/hashicorp/golang-lru/v2 v2.0.7
	github.com/kvbfs/kvbfs v0.0.0
	github.com/maypok86/otter/v2 v2.4.0
)

require golang.org/x/sys v0.49.0 // indirect

replace github.com/kvbfs/kvbfs => ../..
