// Package dump is the plainest face: it prints flows as they end, and log records, as lines of text.
//
// In: the events of an api.API. Out: flows on one writer, log lines on another, in mitmdump's style
// (ADD-dumper, CLI-log). It knows no keyboard. Whatever was captured is printed with its control
// characters escaped, so that no flow can talk to the terminal.
package dump
