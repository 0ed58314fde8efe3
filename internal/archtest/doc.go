// Package archtest keeps the architecture true: its tests fail when the code leaves it.
//
// In: the module's own source files, as "go list" and go/parser see them. Out: test failures that name
// the file, the rule and the reason of the rule. The rules are data: floors_test.go says which package
// stands on which floor, modules_test.go who may use which dependency, parsers_test.go which fuzz target
// guards which input. It knows nothing about what the code does, and no other package imports it.
package archtest
