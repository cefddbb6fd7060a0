package storetest

// RaceEnabled lets the tests know which checks the suite leaves out.
const RaceEnabled = raceEnabled
