// Package proxycore is the contract between whatever brings conversations and the protocols that
// read them.
//
// In: an Inbound per conversation, from netstack's feeds or from a listener. Out: flows, handed to a
// Recorder, and hooks, called on addons. It chooses the protocol of a byte stream (Session.Next), opens
// connections to servers (Session.Dial), runs the hooks in order, and ends everything it began.
// It knows no packets, no particular protocol and no user interface.
//
// The layer stack is the call stack: a Handler serves one protocol on Session.Conn until it ends,
// and calls Next with the stream that it unwrapped. One goroutine owns a conversation and with it
// its live flows; others talk to a flow through LiveFlow's methods.
package proxycore
