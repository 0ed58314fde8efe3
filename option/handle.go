package option

// Bool, String, OptString, Int, OptInt and Strings are handles to declared options. Get returns the
// current value and may be called from any goroutine. The zero handle belongs to no registry and
// must not be used.
type (
	Bool      struct{ handle }
	String    struct{ handle }
	OptString struct{ handle }
	Int       struct{ handle }
	OptInt    struct{ handle }
	Strings   struct{ handle }
)

type handle struct {
	r *Registry
	i int
}

func (h handle) value() any { return (*h.r.values.Load())[h.i] }

// Get returns the current value.
func (o Bool) Get() bool { return o.value().(bool) }

// Get returns the current value.
func (o String) Get() string { return o.value().(string) }

// Get returns the current value; nil means "not set".
func (o OptString) Get() *string { return o.value().(*string) }

// Text returns the current value, "" when not set.
func (o OptString) Text() string {
	if p := o.Get(); p != nil {
		return *p
	}
	return ""
}

// Get returns the current value.
func (o Int) Get() int { return o.value().(int) }

// Get returns the current value; nil means "not set".
func (o OptInt) Get() *int { return o.value().(*int) }

// Get returns the current list, which must not be changed.
func (o Strings) Get() []string { return o.value().([]string) }

// With adjusts a declaration: Choose, NeedsRestart, Check.
type With func(*Spec)

// Choose restricts a string option to these values.
func Choose(values ...string) With { return func(s *Spec) { s.Choices = values } }

// NeedsRestart marks an option whose change only takes effect in the next run.
func NeedsRestart() With { return func(s *Spec) { s.Restart = true } }

// Check adds a rule. It receives the value in the option's Go type and says what is expected.
func Check[T any](rule func(T) error) With {
	return func(s *Spec) { s.Validate = func(v any) error { return rule(v.(T)) } }
}

// Bool declares a yes/no option.
func (r *Registry) Bool(name string, def bool, help string, with ...With) Bool {
	return Bool{r.add(Spec{Name: name, Type: TypeBool, Default: def, Help: help}, with)}
}

// String declares a text option.
func (r *Registry) String(name, def, help string, with ...With) String {
	return String{r.add(Spec{Name: name, Type: TypeStr, Default: def, Help: help}, with)}
}

// OptString declares a text option that is not set by default.
func (r *Registry) OptString(name, help string, with ...With) OptString {
	return OptString{r.add(Spec{Name: name, Type: TypeOptStr, Default: (*string)(nil), Help: help}, with)}
}

// Int declares a number.
func (r *Registry) Int(name string, def int, help string, with ...With) Int {
	return Int{r.add(Spec{Name: name, Type: TypeInt, Default: def, Help: help}, with)}
}

// OptInt declares a number that is not set by default.
func (r *Registry) OptInt(name, help string, with ...With) OptInt {
	return OptInt{r.add(Spec{Name: name, Type: TypeOptInt, Default: (*int)(nil), Help: help}, with)}
}

// Strings declares a list of texts.
func (r *Registry) Strings(name string, def []string, help string, with ...With) Strings {
	if def == nil {
		def = []string{}
	}
	return Strings{r.add(Spec{Name: name, Type: TypeStrings, Default: def, Help: help}, with)}
}

func (r *Registry) add(s Spec, with []With) handle {
	for _, w := range with {
		w(&s)
	}
	return handle{r, r.declare(s)}
}
