package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"

	"mainstay.dev/mainstay/load"
)

// What unitehub's example data holds.
const (
	workspaces = 20
	contacts   = 4000
)

// analyze is the kind that calls Claude. Its latency is mostly Claude's, so it is
// kept out of the API's percentiles.
const analyze = "analyze"

func isAPI(kind string) bool    { return kind != analyze }
func isClaude(kind string) bool { return kind == analyze }

// mix is what the users of a CRM do: mostly look, sometimes write, now and then ask
// Claude.
func mix() []load.Kind {
	workspace := func(r *rand.Rand) int { return 1 + r.IntN(workspaces) }
	contact := func(r *rand.Rand) int { return 1 + r.IntN(contacts) }
	return []load.Kind{
		look("contacts", 34, "/api/workspaces/%d/contacts", workspace),
		look("contact", 26, "/api/contacts/%d", contact),
		look("dashboard", 10, "/api/workspaces/%d/dashboard", workspace),
		look("users", 8, "/api/workspaces/%d/users", workspace),
		look("workspaces", 4, "/api/workspaces", nil),
		{Name: "create", Weight: 10, Make: makeContact, Judge: judge(http.StatusCreated)},
		{Name: analyze, Weight: 8, Judge: judge(http.StatusOK),
			Make: func(ctx context.Context, base string, r *rand.Rand) (*http.Request, error) {
				return http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/api/contacts/%d/analyze", base, contact(r)), nil)
			}},
	}
}

// look is a kind that reads; pick chooses the id that the path names.
func look(name string, weight int, path string, pick func(*rand.Rand) int) load.Kind {
	return load.Kind{Name: name, Weight: weight, Judge: judge(http.StatusOK),
		Make: func(ctx context.Context, base string, r *rand.Rand) (*http.Request, error) {
			url := base + path
			if pick != nil {
				url = base + fmt.Sprintf(path, pick(r))
			}
			return http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		}}
}

func makeContact(ctx context.Context, base string, r *rand.Rand) (*http.Request, error) {
	n := r.Uint32()
	body := fmt.Sprintf(`{"name":"New Contact %d","email":"new%d@load.example","company":"Company %d"}`, n, n, n%97)
	url := fmt.Sprintf("%s/api/workspaces/%d/contacts", base, 1+r.IntN(workspaces))
	return http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
}

// An answer is the part of unitehub's bodies by which they are told apart.
type answer struct {
	Error     string            `json:"error"`
	ID        int64             `json:"id"`
	ContactID int64             `json:"contact_id"`
	Analysis  string            `json:"analysis"`
	Items     []json.RawMessage `json:"items"`
	Stages    []json.RawMessage `json:"stages"`
}

// judge accepts an answer of the wanted status whose body is the right one for what
// was asked; an answer meant for somebody else is a wrong body.
func judge(want int) func(load.Answer) (load.Verdict, string) {
	return func(a load.Answer) (load.Verdict, string) {
		var body answer
		err := json.NewDecoder(bytes.NewReader(a.Body)).Decode(&body)
		switch {
		case a.Status != want:
			return load.HTTPError, cause(a, body)
		case err != nil:
			return load.WrongBody, "no_json"
		case !fits(a.Request, body):
			return load.WrongBody, "not_what_was_asked"
		}
		return load.OK, ""
	}
}

// cause names what broke: by the app's own word, else by Mainstay's, else by status.
func cause(a load.Answer, body answer) string {
	if body.Error != "" && a.Header.Get("Mainstay-Code") == "" {
		return body.Error
	}
	if code := a.Header.Get("Mainstay-Code"); code != "" && code != "ok" {
		return code
	}
	_, status := load.ByStatus(a)
	return status
}

// fits tells whether body answers the request's path.
func fits(req *http.Request, body answer) bool {
	path := req.URL.Path
	named := func(id int64) bool { return strings.Contains(path+"/", fmt.Sprintf("/contacts/%d/", id)) }
	switch {
	case strings.HasSuffix(path, "/analyze"):
		return body.Analysis != "" && named(body.ContactID)
	case strings.HasPrefix(path, "/api/contacts/"):
		return named(body.ID)
	case strings.HasSuffix(path, "/dashboard"):
		return len(body.Stages) > 0
	case req.Method == http.MethodPost:
		return body.ID > contacts
	default:
		return len(body.Items) > 0
	}
}
