//go:build !race

package jsonlog

const raceDetector = false
