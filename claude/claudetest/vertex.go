package claudetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
)

// vertexPath is where Vertex AI is asked for what a model says.
var vertexPath = regexp.MustCompile(`^/v1/projects/([^/]+)/locations/([^/]+)/publishers/anthropic/models/([^/:]+):(rawPredict|streamRawPredict)$`)

// Vertex is the server as Google's Vertex AI serves the same models
// (https://docs.claude.com/en/api/claude-on-vertex-ai): it takes what that takes, and
// nothing else, and fails as the server does, by the same script and schedule. token
// gives the access token that is let in now.
func (s *Server) Vertex(project, region string, token func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRead))
		if err != nil {
			return
		}
		at := vertexPath.FindStringSubmatch(r.URL.Path)
		var ask map[string]json.RawMessage
		switch {
		case at == nil || r.Method != http.MethodPost:
			google(w, 404, "NOT_FOUND", "The requested URL was not found on this server.")
		case r.Header.Get("Authorization") != "Bearer "+token():
			google(w, 401, "UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token.")
		case at[1] != project || at[2] != region:
			google(w, 403, "PERMISSION_DENIED", "Permission denied on resource project "+at[1]+".")
		case r.URL.RawQuery != "" || r.Header.Get("X-Api-Key") != "" || r.Header.Get("Anthropic-Version") != "":
			google(w, 400, "INVALID_ARGUMENT", "Unknown parameter.")
		case json.Unmarshal(body, &ask) != nil:
			google(w, 400, "INVALID_ARGUMENT", "Invalid JSON payload received.")
		case string(ask["anthropic_version"]) != `"vertex-2023-10-16"` || ask["model"] != nil:
			google(w, 400, "INVALID_ARGUMENT", "anthropic_version: Field required, or model: Extra inputs are not permitted")
		case (string(ask["stream"]) == "true") != (at[4] == "streamRawPredict"):
			google(w, 400, "INVALID_ARGUMENT", "stream does not fit "+at[4]+".")
		default:
			delete(ask, "anthropic_version")
			model, _, _ := strings.Cut(at[3], "@")
			ask["model"], _ = json.Marshal(model)
			text, err := json.Marshal(ask)
			if err != nil {
				panic("claudetest: JSON that was read can't be written: " + err.Error())
			}
			in := r.Clone(r.Context())
			in.URL.Path, in.RequestURI = "/v1/messages", "/v1/messages"
			in.Body, in.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
			in.Header.Del("Authorization")
			in.Header.Set("X-Api-Key", "vertex")
			in.Header.Set("Anthropic-Version", before)
			s.ServeHTTP(w, in)
		}
	})
}

// google is an error in Google's shape.
func google(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"status":%q}}`, status, message, kind)
}
