//go:build !race

package tlsmitm_test

const cutStep = 1
