package scan

// LeadsBack returns the setting that a text leads back to what it was at login, or "all", if that is all that it does: a
// single RESET, SET to DEFAULT or DISCARD ALL. local is whether that is over with the transaction.
func LeadsBack(sql []byte) (name string, local bool) {
	list, _ := Resets(sql, false)
	if len(list) != 1 || list[0].Nth > 0 || !list[0].Last {
		return "", false
	}
	if name, local = list[0].Name, list[0].Local; name == "discard" {
		name = "all"
	}
	return name, local
}
