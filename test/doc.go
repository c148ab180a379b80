// Package test judges the built binary from outside: real processes, a real
// PostgreSQL, the strict fake of the Claude API, the official clients. It imports
// no plane.
package test
