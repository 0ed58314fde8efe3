package appliance

// newAddons is the one list of built-in addons, in the order in which they see events (HOOK-24).
func (a *Appliance) newAddons() []any {
	return []any{}
}
