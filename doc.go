// Package mainstay holds the tests that are about the whole module: which package
// may import which, and how large its parts may grow.
package mainstay
