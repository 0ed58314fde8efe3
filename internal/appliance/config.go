package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"mitm-appliance/option"
)

// LoadConfig applies config.yaml or config.yml of the confdir, if there is one (OPT-load).
func LoadConfig(r *option.Registry) error {
	dir, _ := r.Value("confdir")
	for _, name := range []string{"config.yaml", "config.yml"} {
		path := filepath.Join(Expand(dir.(string)), name)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
		if err := applyYAML(r, data); err != nil {
			return fmt.Errorf("configuration file %s: %w", path, err)
		}
	}
	return nil
}

func applyYAML(r *option.Registry, data []byte) error {
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		return err
	}
	var texts []string
	for name, v := range values {
		switch v := v.(type) {
		case []any:
			if len(v) == 0 {
				texts = append(texts, name)
			}
			for _, item := range v {
				texts = append(texts, fmt.Sprintf("%s=%v", name, item))
			}
		case nil:
			texts = append(texts, name)
		default:
			texts = append(texts, fmt.Sprintf("%s=%v", name, v))
		}
	}
	return r.SetText(texts...)
}

// DumpConfig writes all options, sorted and explained, in the form of the configuration file
// (OPT-dump).
func DumpConfig(r *option.Registry) ([]byte, error) {
	var out bytes.Buffer
	for _, s := range r.Specs() {
		v, _ := r.Value(s.Name)
		line, err := yaml.Marshal(map[string]any{s.Name: v})
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", s.Name, err)
		}
		about := "Type " + string(s.Type) + "."
		if len(s.Choices) > 0 {
			about = "Valid values: " + strings.Join(s.Choices, ", ") + "."
		}
		for _, text := range wrap(s.Help+" "+about, 96) {
			fmt.Fprintf(&out, "# %s\n", text)
		}
		out.Write(line)
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

// wrap breaks text into lines of at most width bytes where it has spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
