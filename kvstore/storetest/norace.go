//go:build !race

package storetest

// RaceEnabled is described in race.go.
const RaceEnabled = false
