package archtest

import (
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logKeys is the list of keys that log records of the product have, as a paragraph.
func logKeys(t *testing.T) string {
	t.Helper()
	keys := map[string]bool{}
	for _, p := range packages(t) {
		if matches(development, p.Name) {
			continue
		}
		for _, file := range p.parse(t) {
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					for _, k := range keysOf(call) {
						keys[k] = true
					}
				}
				return true
			})
		}
	}
	return "`" + strings.Join(slices.Sorted(maps.Keys(keys)), "` `") + "`\n"
}

// keysOf returns the keys of a call such as log.Info("message", "key", value).
func keysOf(call *ast.CallExpr) []string {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	args := call.Args
	switch f.Sel.Name {
	case "Debug", "Info", "Warn", "Error":
		if len(args) == 0 {
			return nil
		}
		args = args[1:]
	case "DebugContext", "InfoContext", "WarnContext", "ErrorContext":
		if len(args) < 2 {
			return nil
		}
		args = args[2:]
	case "Log":
		if len(args) < 3 {
			return nil
		}
		args = args[3:]
	case "With":
	case "String", "Int", "Int64", "Uint64", "Bool", "Any", "Duration", "Time":
		if x, ok := f.X.(*ast.Ident); !ok || x.Name != "slog" || len(args) == 0 {
			return nil
		}
		args = args[:1]
	default:
		return nil
	}
	var keys []string
	for i := 0; i < len(args); i += 2 {
		lit, ok := args[i].(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return keys
		}
		if k, err := strconv.Unquote(lit.Value); err == nil && !strings.Contains(k, " ") {
			keys = append(keys, k)
		}
	}
	return keys
}
