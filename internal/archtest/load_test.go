package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// pkg is a package of the module.
type pkg struct {
	Name        string   // relative to the module, "flow/flowfile"
	Dir         string   // absolute
	Imports     []string // of the product, without tests
	TestImports []string
	Own         []string // those of Imports that are ours, relative
	Foreign     []string // those of Imports that are others'
	Files       []string // base names, all but tests
	Tests       []string // base names of tests

	fset *token.FileSet
	asts []*ast.File
}

// listed is what "go list -json" says.
type listed struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
	IgnoredGoFiles  []string // for other systems and build tags
	TestGoFiles     []string
	XTestGoFiles    []string
	TestImports     []string
	XTestImports    []string
	Module          struct{ Path string }
}

var load = sync.OnceValues(func() ([]*pkg, error) {
	dir, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,TestImports,XTestImports,Module", "./...")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	var all []*pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var l listed
		if err := dec.Decode(&l); err != nil {
			return nil, err
		}
		p := &pkg{Dir: l.Dir, Imports: l.Imports, Files: append(l.GoFiles, l.IgnoredGoFiles...), Tests: append(l.TestGoFiles, l.XTestGoFiles...), TestImports: append(l.TestImports, l.XTestImports...)}
		own := l.Module.Path + "/"
		p.Name = strings.TrimPrefix(l.ImportPath, own)
		for _, i := range l.Imports {
			first, _, _ := strings.Cut(i, "/")
			if rest, ok := strings.CutPrefix(i, own); ok {
				p.Own = append(p.Own, rest)
			} else if strings.Contains(first, ".") {
				p.Foreign = append(p.Foreign, i)
			}
		}
		all = append(all, p)
	}
	return all, nil
})

func packages(t testing.TB) []*pkg {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

func moduleRoot() (string, error) {
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(dir, "go.mod"))
	return dir, err
}

func root(t testing.TB) string {
	t.Helper()
	dir, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// parse returns the syntax of all files but tests.
func (p *pkg) parse(t testing.TB) []*ast.File {
	t.Helper()
	if p.asts != nil {
		return p.asts
	}
	names := slices.DeleteFunc(slices.Clone(p.Files), func(name string) bool {
		return strings.HasSuffix(name, "_test.go") // ignored because of a build tag
	})
	p.asts = p.parseFiles(t, names)
	return p.asts
}

func (p *pkg) parseFiles(t testing.TB, names []string) []*ast.File {
	t.Helper()
	if p.fset == nil {
		p.fset = token.NewFileSet()
	}
	var files []*ast.File
	for _, name := range names {
		file, err := parser.ParseFile(p.fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// at is a position as people write it, "flow/flow.go:12".
func (p *pkg) at(pos token.Pos) string {
	where := p.fset.Position(pos)
	return fmt.Sprintf("%s:%d", path.Join(p.Name, filepath.Base(where.Filename)), where.Line)
}

type use struct{ name, at string }

// uses lists what p takes from an imported package.
func (p *pkg) uses(t testing.TB, imported string) []use {
	t.Helper()
	var all []use
	for _, file := range p.parse(t) {
		local := localName(file, imported)
		if local == "" {
			continue
		}
		if local == "_" || local == "." {
			all = append(all, use{"everything", p.at(file.Package)})
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == local && x.Obj == nil { // a variable of that name has an Obj
					all = append(all, use{s.Sel.Name, p.at(s.Pos())})
				}
			}
			return true
		})
	}
	return all
}

// localName is how a file calls an imported package; "" when it does not import it.
func localName(file *ast.File, imported string) string {
	for _, i := range file.Imports {
		if v, err := strconv.Unquote(i.Path.Value); err != nil || v != imported {
			continue
		}
		if i.Name != nil {
			return i.Name.Name
		}
		return path.Base(imported)
	}
	return ""
}
