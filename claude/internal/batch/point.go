package batch

import "bytes"

// Point makes results_url lead to base, the address by which the client has asked, in
// what Claude tells of batches: the SDKs follow it, and would fetch the results past
// Mainstay. A text in which there is nothing to change is returned as it is.
func Point(text []byte, base string) []byte {
	const name, path = `"results_url"`, "/v1/messages/batches/"
	var out []byte
	rest := text
	for {
		at := bytes.Index(rest, []byte(name)) // within a string its quotes would be escaped
		if at < 0 {
			break
		}
		value := bytes.TrimLeft(rest[at+len(name):], " \t\r\n:")
		begin := len(rest) - len(value)
		if colon := rest[at+len(name) : begin]; bytes.Count(colon, []byte{':'}) == 1 && bytes.HasPrefix(value, []byte(`"http`)) {
			end := bytes.IndexByte(value[1:], '"') + 1
			if own := bytes.Index(value[:end], []byte(path)); own > 0 && bytes.IndexByte(value[:end], '\\') < 0 {
				out = append(append(append(out, rest[:begin+1]...), base...), value[own:end]...)
				rest = value[end:]
				continue
			}
		}
		out = append(out, rest[:begin]...)
		rest = value
	}
	if out == nil {
		return text
	}
	return append(out, rest...)
}
