package archtest

import (
	"bytes"
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxLines is where a file becomes several: it no longer fits into a reader's head.
const maxLines = 600

func TestPackagesAreExplained(t *testing.T) {
	sentence := regexp.MustCompile(`[.:!?]["')]?(\s|$)`)
	for _, p := range packages(t) {
		var doc string
		var name string
		files := p.parse(t)
		if len(files) == 0 { // a package of tests only
			files = p.parseFiles(t, p.Tests)
		}
		for _, file := range files {
			name = file.Name.Name
			if file.Doc != nil {
				doc += file.Doc.Text()
			}
		}
		begin := "Package " + name + " "
		if name == "main" {
			begin = "Command " + path.Base(p.Name) + " "
		}
		if !strings.HasPrefix(doc, begin) || len(sentence.FindAllString(doc, -1)) < 2 {
			t.Errorf("%s: the package comment must begin with %q and say in at least two sentences what goes in, what comes out, and what it does not know; got %.80q", p.Name, begin, doc)
		}
	}
}

func TestNamesOfPackagesSayWhatTheyAreFor(t *testing.T) {
	empty := []string{"util", "utils", "common", "helper", "helpers", "types", "models", "misc", "base", "shared", "lib"}
	for _, p := range packages(t) {
		if slices.Contains(empty, path.Base(p.Name)) {
			t.Errorf("%s: a name that fits everything; name what the package is for", p.Name)
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range slices.Concat(p.Files, p.Tests) {
			data, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(data, []byte("\n")); n > maxLines {
				t.Errorf("%s has %d lines, at most %d: split it by purpose", path.Join(p.Name, name), n, maxLines)
			}
		}
	}
}

func TestNothingRunsByBeingImported(t *testing.T) {
	for _, p := range packages(t) {
		for _, file := range p.parse(t) {
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s: func init runs without being asked, in an order that nobody sees: call it where things are built", p.at(f.Pos()))
				}
			}
		}
	}
}

// TestNoGlobalState allows package variables that are never written: errors, interface guards, tables,
// regular expressions, embedded files; and pools, which hold nothing that anybody could tell apart.
// Two appliances in one process must not feel each other.
func TestNoGlobalState(t *testing.T) {
	for _, p := range packages(t) {
		written := p.written(t)
		for _, file := range p.parse(t) {
			for _, d := range file.Decls {
				decl, ok := d.(*ast.GenDecl)
				if !ok || decl.Tok != token.VAR {
					continue
				}
				for _, s := range decl.Specs {
					p.checkVar(t, decl, s.(*ast.ValueSpec), written)
				}
			}
		}
	}
}

func (p *pkg) checkVar(t *testing.T, decl *ast.GenDecl, spec *ast.ValueSpec, written map[string]string) {
	t.Helper()
	kind := p.source(spec)
	for _, name := range spec.Names {
		at, word := p.at(name.Pos()), name.Name
		sentinel := strings.HasPrefix(strings.ToLower(word), "err")
		switch {
		case word == "_" || hasEmbed(decl, spec):
		case strings.Contains(kind, "sync.Pool{"):
			if spec.Doc == nil && decl.Doc == nil && spec.Comment == nil {
				t.Errorf("%s: the pool %s needs a comment that says what it saves", at, word)
			}
		case regexp.MustCompile(`\b(sync|atomic)\.[A-Z]\w*(\[|\{|$| )`).MatchString(kind) && !strings.Contains(kind, "sync.OnceValue"):
			t.Errorf("%s: %s is global state: put it into the struct that uses it", at, word)
		case written[word] != "":
			t.Errorf("%s: %s is written at %s: global state; put it into the struct that uses it", at, word, written[word])
		case len(spec.Values) == 0:
			t.Errorf("%s: %s is declared without a value: global state", at, word)
		case ast.IsExported(word) && !sentinel:
			t.Errorf("%s: %s is exported, so that any package could write it: make it a function or a constant", at, word)
		}
	}
}

// source is the text of a declaration.
func (p *pkg) source(n ast.Node) string {
	from, to := p.fset.Position(n.Pos()), p.fset.Position(n.End())
	data, err := os.ReadFile(from.Filename)
	if err != nil || to.Offset > len(data) {
		return ""
	}
	return string(data[from.Offset:to.Offset])
}

func hasEmbed(decl *ast.GenDecl, spec *ast.ValueSpec) bool {
	for _, group := range []*ast.CommentGroup{decl.Doc, spec.Doc} {
		if group == nil {
			continue
		}
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:embed ") {
				return true
			}
		}
	}
	return false
}

// written maps the package's variables that something assigns to, or takes the address of, to where.
func (p *pkg) written(t *testing.T) map[string]string {
	t.Helper()
	files := p.parse(t)
	global := map[string]bool{}
	specs := map[any]bool{} // declarations of the package, to tell them from local ones of the same name
	for _, file := range files {
		for _, d := range file.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				for _, s := range g.Specs {
					specs[s] = true
					for _, n := range s.(*ast.ValueSpec).Names {
						global[n.Name] = true
					}
				}
			}
		}
	}
	out := map[string]string{}
	note := func(e ast.Expr) {
		id := target(e)
		if id == nil || !global[id.Name] {
			return
		}
		if id.Obj == nil || specs[id.Obj.Decl] {
			out[id.Name] = p.at(id.Pos())
		}
	}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, e := range n.Lhs {
						note(e)
					}
				}
			case *ast.IncDecStmt:
				note(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					note(n.X)
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && slices.Contains([]string{"delete", "clear", "copy"}, f.Name) {
					note(n.Args[0])
				}
			}
			return true
		})
	}
	return out
}

// target is the variable that an assignment to e changes.
func target(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			return nil // what a pointer points to
		default:
			return nil
		}
	}
}
