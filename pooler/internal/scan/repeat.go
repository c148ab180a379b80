package scan

// harmless are the words that may stand before a parenthesis in a text that reads and
// does nothing else: keywords, and functions of PostgreSQL's own that only compute.
var harmless = func() map[string]bool {
	m := map[string]bool{}
	for _, w := range []string{
		"select", "from", "where", "and", "or", "not", "in", "exists", "any", "all", "some", "as", "on", "using", "over", "filter", "group", "by", "within",
		"values", "when", "then", "else", "case", "cast", "row", "array", "having", "union", "except", "intersect", "join", "lateral", "distinct", "limit", "offset",
		"numeric", "decimal", "varchar", "char", "character", "varying", "bit", "time", "timestamp", "timestamptz", "interval", "extract", "with", "materialized", "between", "is", "like", "ilike", "order",
		"count", "sum", "avg", "min", "max", "coalesce", "nullif", "greatest", "least", "now", "abs", "mod", "power", "sqrt", "round", "floor", "ceil", "ceiling", "trunc", "sign", "exp", "ln", "log",
		"lower", "upper", "initcap", "length", "char_length", "octet_length", "substring", "substr", "trim", "ltrim", "rtrim", "btrim", "lpad", "rpad", "left", "right", "concat", "concat_ws", "replace",
		"translate", "reverse", "repeat", "position", "strpos", "overlay", "split_part", "format", "regexp_replace", "regexp_match", "regexp_matches", "starts_with", "md5", "encode", "decode", "ascii", "chr",
		"quote_ident", "quote_literal", "to_char", "to_date", "to_timestamp", "to_number", "date_trunc", "date_part", "date_bin", "age", "make_date", "make_interval", "justify_interval", "clock_timestamp", "statement_timestamp",
		"array_agg", "string_agg", "json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg", "json_build_object", "jsonb_build_object", "json_build_array", "jsonb_build_array", "row_to_json", "to_json", "to_jsonb",
		"json_array_length", "jsonb_array_length", "json_array_elements", "jsonb_array_elements", "json_array_elements_text", "jsonb_array_elements_text", "json_each", "jsonb_each", "json_each_text", "jsonb_each_text",
		"json_extract_path_text", "jsonb_extract_path_text", "jsonb_set", "jsonb_strip_nulls", "jsonb_typeof", "json_typeof", "json_populate_record", "jsonb_populate_record", "json_to_recordset", "jsonb_to_recordset", "jsonb_path_query", "jsonb_path_exists",
		"unnest", "generate_series", "generate_subscripts", "array_length", "array_position", "array_remove", "array_append", "array_cat", "array_to_string", "string_to_array", "cardinality",
		"row_number", "rank", "dense_rank", "percent_rank", "ntile", "lag", "lead", "first_value", "last_value", "nth_value", "bool_and", "bool_or", "every", "stddev", "variance", "percentile_cont", "percentile_disc", "mode",
		"to_tsvector", "to_tsquery", "plainto_tsquery", "websearch_to_tsquery", "ts_rank", "current_setting", "current_schema", "version", "pg_sleep", "pg_typeof",
	} {
		m[w] = true
	}
	return m
}()

// Repeatable reports whether a text is one statement that reads and does nothing else,
// as far as that can be told: it may be carried out again if its answer was lost. A view
// or an operator may hide what it does, a function can't: of those it knows a list.
func Repeatable(sql []byte, backslash bool) bool {
	l := lexer{sql: sql, backslash: backslash}
	t := l.next()
	if !l.is(t, "select") && !l.is(t, "values") && !l.is(t, "table") && !l.is(t, "show") && !l.is(t, "with") {
		return false
	}
	last, known, dot := true, true, false // what stands before may be called, and has a schema
	for ; t.kind != end; t = l.next() {
		switch {
		case t.kind == word:
			var buf [40]byte
			w := walk{lexer: l}
			name := string(buf[:w.fold(t, &buf)])
			switch name {
			case "insert", "update", "delete", "merge", "into", "call", "share", "lock", "copy", "set":
				return false
			}
			last, known = true, harmless[name] && !dot
		case t.kind == quoted:
			last, known = true, false
		case l.isMark(t, ';'):
			return l.next().kind == end
		case l.isMark(t, '(') && last && !known:
			return false
		default:
			last = false
		}
		dot = l.isMark(t, '.')
	}
	return true
}
