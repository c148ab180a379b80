package otlp

import "google.golang.org/protobuf/encoding/protowire"

// Resource says who speaks; it goes with every span.
type Resource struct {
	Service     string // service.name
	Environment string // deployment.environment.name; may be empty
	Version     string // service.version; may be empty
	Instance    string // service.instance.id; may be empty
}

// A frame is what stands around the spans in every request: the resource and the scope.
type frame struct {
	head []byte // of ScopeSpans, up to its spans
	tail []byte // of ScopeSpans, behind them
	// The same of ResourceSpans, around the ScopeSpans.
	resource, schema []byte
}

func (r Resource) frame() (f frame) {
	var w wire
	from := w.open(resourceSpansResource)
	for _, a := range []struct {
		key key
		v   string
	}{
		{keyService, r.Service},
		{keySDKLanguage, "go"},
		{keySDKName, "mainstay"},
		{keyEnvironment, r.Environment},
		{keyServiceVersion, r.Version},
		{keyInstance, r.Instance},
	} {
		if v := clean(a.v); v != "" || a.key == keyService {
			w.tag(resourceAttributes, protowire.BytesType)
			w.keyValue(a.key, 1+protowire.SizeBytes(len(v)))
			w.string(valueText, v)
		}
	}
	w.close(from)
	f.resource = w

	w = nil
	from = w.open(scopeSpansScope)
	w.string(scopeName, scope)
	w.close(from)
	f.head = w

	f.tail = protowire.AppendString(protowire.AppendTag(nil, scopeSpansSchema, protowire.BytesType), schema)
	f.schema = protowire.AppendString(protowire.AppendTag(nil, resourceSpansSchema, protowire.BytesType), schema)
	return f
}

// open appends what stands before n bytes of spans; f.close appends the rest.
func (f *frame) open(b []byte, n int) []byte {
	scopes := len(f.head) + n + len(f.tail)
	all := len(f.resource) + 1 + protowire.SizeBytes(scopes) + len(f.schema)
	b = protowire.AppendTag(b, requestResourceSpans, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(all))
	b = append(b, f.resource...)
	b = protowire.AppendTag(b, resourceSpansScopes, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(scopes))
	return append(b, f.head...)
}

func (f *frame) close(b []byte) []byte { return append(append(b, f.tail...), f.schema...) }
