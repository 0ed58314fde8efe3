//go:build race

package tlsmitm_test

const cutStep = 11 // the race detector makes handshakes slow, and looks for something else
