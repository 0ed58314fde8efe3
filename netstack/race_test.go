//go:build race

package netstack

const raceEnabled = true // memory is not what it is without
