package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/jackc/pgx/v5"
)

// start serves the app on a schema of its own, filled with the example data, and
// with claude as its Claude API.
func start(t *testing.T, claude http.Handler) *httptest.Server {
	t.Helper()
	api := httptest.NewServer(claude)
	t.Cleanup(api.Close)
	a := &app{
		database: freshDatabase(t),
		claude: anthropic.NewClient(option.WithMaxRetries(0), option.WithAPIKey("test"),
			option.WithBaseURL(api.URL), option.WithHTTPClient(api.Client())),
	}
	srv := httptest.NewServer(a.routes())
	t.Cleanup(srv.Close)
	return srv
}

// freshDatabase makes a schema in the database of DATABASE_URL and returns an
// address whose sessions see that schema alone.
func freshDatabase(t *testing.T) string {
	t.Helper()
	base := os.Getenv("DATABASE_URL")
	if base == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("DATABASE_URL is not set, and CI=true allows no skip")
		}
		t.Skip("needs a PostgreSQL: set DATABASE_URL")
	}
	conn, err := pgx.Connect(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	schema := fmt.Sprintf("unitehub_test_%d_%s", os.Getpid(), strings.ToLower(t.Name()))
	if len(schema) > 63 {
		schema = schema[:63]
	}
	name := pgx.Identifier{schema}.Sanitize()
	if _, err := conn.Exec(t.Context(), `CREATE SCHEMA `+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dropSchema(t, base, name) })
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	if err := migrate(t.Context(), u.String()); err != nil {
		t.Fatal(err)
	}
	if err := seed(t.Context(), u.String()); err != nil {
		t.Fatal(err)
	}
	return u.String()
}

// dropSchema runs when the test's own context has ended.
func dropSchema(t *testing.T, base, name string) {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, base)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `DROP SCHEMA `+name+` CASCADE`); err != nil {
		t.Error(err)
	}
}

// call sends a request and decodes the answer, whose status must be want.
func call(t *testing.T, method, url, body string, want int) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s\n%s\nwant status %d", method, url, resp.Status, text, want)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("%s %s: %v in %s", method, url, err, text)
	}
	return out
}

func answering(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

const message = `{"id":"msg_1","type":"message","role":"assistant","model":"claude-haiku-4-5",
	"content":[{"type":"text","text":"Call on Friday."}],"stop_reason":"end_turn","stop_sequence":null,
	"usage":{"input_tokens":10,"output_tokens":4}}`

func TestAWorkspaceShowsItsUsersContactsAndDashboard(t *testing.T) {
	srv := start(t, answering(http.StatusOK, message))
	if got := call(t, "GET", srv.URL+"/api/health", "", 200)["status"]; got != "ok" {
		t.Errorf("health says %v", got)
	}
	for path, want := range map[string]int{"/api/workspaces": 20, "/api/workspaces/3/users": 5, "/api/workspaces/3/contacts": 25} {
		if items := call(t, "GET", srv.URL+path, "", 200)["items"].([]any); len(items) != want {
			t.Errorf("%s has %d items, want %d", path, len(items), want)
		}
	}
	total := 0.0
	for _, s := range call(t, "GET", srv.URL+"/api/workspaces/3/dashboard", "", 200)["stages"].([]any) {
		total += s.(map[string]any)["contacts"].(float64)
	}
	if total != 200 {
		t.Errorf("the dashboard counts %v contacts, want 200", total)
	}
}

func TestANewContactIsTheFirstOfItsWorkspace(t *testing.T) {
	srv := start(t, answering(http.StatusOK, message))
	made := call(t, "POST", srv.URL+"/api/workspaces/7/contacts", `{"name":"Ada","email":"ada@example.com"}`, 201)
	first := call(t, "GET", srv.URL+"/api/workspaces/7/contacts", "", 200)["items"].([]any)[0].(map[string]any)
	if first["id"] != made["id"] || first["name"] != "Ada" {
		t.Errorf("the list begins with %v, want %v", first, made)
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	srv := start(t, answering(http.StatusOK, message))
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/api/contacts/999999", "", 404, "not_found"},
		{"GET", "/api/contacts/nonsense", "", 404, "not_found"},
		{"POST", "/api/contacts/999999/analyze", "", 404, "not_found"},
		{"POST", "/api/workspaces/999/contacts", `{"name":"A","email":"a@b.c"}`, 404, "not_found"},
		{"POST", "/api/workspaces/1/contacts", `{"name":"A"}`, 400, "invalid"},
		{"POST", "/api/workspaces/1/contacts", `{`, 400, "invalid"},
	} {
		if got := call(t, c.method, srv.URL+c.path, c.body, c.status)["error"]; got != c.code {
			t.Errorf("%s %s: code %v, want %s", c.method, c.path, got, c.code)
		}
	}
}

func TestAnAnalysisIsKeptWithItsContact(t *testing.T) {
	srv := start(t, answering(http.StatusOK, message))
	if got := call(t, "POST", srv.URL+"/api/contacts/5/analyze", "", 200)["analysis"]; got != "Call on Friday." {
		t.Errorf("the analysis is %v", got)
	}
	if got := call(t, "GET", srv.URL+"/api/contacts/5", "", 200)["analysis"]; got != "Call on Friday." {
		t.Errorf("the contact's analysis is %v", got)
	}
}

func TestAnOverloadedClaudeIsAFailedAnalysisAtOnce(t *testing.T) {
	calls := 0
	overloaded := answering(529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`)
	srv := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		overloaded.ServeHTTP(w, r)
	}))
	if got := call(t, "POST", srv.URL+"/api/contacts/5/analyze", "", 502)["error"]; got != "claude" {
		t.Errorf("code %v, want claude", got)
	}
	if calls != 1 {
		t.Errorf("Claude was called %d times, want once: this app retries nothing", calls)
	}
}

func TestADatabaseThatIsAwayIsSaidByTheHealthCheck(t *testing.T) {
	a := &app{database: "postgres://nobody@127.0.0.1:1/none?connect_timeout=2"}
	srv := httptest.NewServer(a.routes())
	t.Cleanup(srv.Close)
	if got := call(t, "GET", srv.URL+"/api/health", "", 503)["error"]; got != "database" {
		t.Errorf("code %v, want database", got)
	}
}

func TestRunNamesWhatIsMissing(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	if err := run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("got %v", err)
	}
	t.Setenv("DATABASE_URL", "postgres://localhost/x")
	if err := run(t.Context(), []string{"sow"}); err == nil || !strings.Contains(err.Error(), "sow") {
		t.Errorf("got %v", err)
	}
}
