//go:build race

package jsonlog

// raceDetector: under it sync.Pool forgets at random, so counts of allocations
// mean nothing.
const raceDetector = true
