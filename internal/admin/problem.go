package admin

import (
	"encoding/json"
	"net/http"
)

// A Problem is an error as the API answers it (RFC 9457): what is wrong, and the
// mend.
type Problem struct {
	Status int    `json:"status"` // as the HTTP status
	Title  string `json:"title"`  // of the status
	Detail string `json:"detail"` // what is wrong; may have several lines
	Mend   string `json:"mend,omitempty"`
}

func (p *Problem) Error() string {
	if p.Mend == "" {
		return p.Detail
	}
	return p.Detail + "; " + p.Mend
}

func problem(status int, detail, mend string) *Problem {
	return &Problem{Status: status, Title: http.StatusText(status), Detail: detail, Mend: mend}
}

func (p *Problem) answer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="mainstay"`)
	}
	w.WriteHeader(p.Status)
	encode(w, p)
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	encode(w, v)
}

// encode writes v and a line's end. A client that has gone away is no error of
// ours, and the values are ours, so that nothing else can fail.
func encode(w http.ResponseWriter, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}
