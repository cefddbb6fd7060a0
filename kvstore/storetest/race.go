//go:build race

package storetest

// RaceEnabled says whether the test was built with -race: it then takes several
// times as long, and allocates.
const RaceEnabled = true
