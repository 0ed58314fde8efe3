// Package flowfile reads and writes mitmproxy's dump format: flows, one after the other, as
// tnetstrings of flow format version 21 (FMT-tnet, FMT-v21).
//
// In: bytes, or flows. Out: the other. It knows no file names, no options and no hooks. What it writes
// is what mitmproxy 10 and later writes and accepts, key by key; facts that mitmproxy has no key
// for (the feed, the process, JA3, ...) travel in the flow's metadata under names that begin with
// "mitm-appliance.", where mitmproxy shows them and Reader finds them again.
//
// Times are floating point seconds in this format, which keeps them to a quarter of a microsecond.
package flowfile

// Version is the flow format version that is written and read.
const Version = 21
