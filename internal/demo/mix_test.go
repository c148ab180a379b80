package demo

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"testing"

	"mainstay.dev/mainstay/load"
)

func TestAnAnswerIsJudgedByWhatWasAsked(t *testing.T) {
	ours := http.Header{"Mainstay-Code": {"no_target"}}
	for _, c := range []struct {
		name, method, path string
		status             int
		header             http.Header
		body               string
		verdict            load.Verdict
		cause              string
	}{
		{"a list", "GET", "/api/workspaces/3/contacts", 200, nil, `{"items":[{"id":1}]}`, load.OK, ""},
		{"an empty list", "GET", "/api/workspaces/3/contacts", 200, nil, `{"items":[]}`, load.WrongBody, "not_what_was_asked"},
		{"the contact", "GET", "/api/contacts/12", 200, nil, `{"id":12}`, load.OK, ""},
		{"somebody else's contact", "GET", "/api/contacts/1", 200, nil, `{"id":12}`, load.WrongBody, "not_what_was_asked"},
		{"a dashboard", "GET", "/api/workspaces/3/dashboard", 200, nil, `{"stages":[{}]}`, load.OK, ""},
		{"a page", "GET", "/api/contacts/12", 200, nil, `<html>`, load.WrongBody, "no_json"},
		{"a new contact", "POST", "/api/workspaces/3/contacts", 201, nil, `{"id":4001}`, load.OK, ""},
		{"an analysis", "POST", "/api/contacts/12/analyze", 200, nil, `{"contact_id":12,"analysis":"Call."}`, load.OK, ""},
		{"an analysis of another", "POST", "/api/contacts/12/analyze", 200, nil, `{"contact_id":13,"analysis":"Call."}`, load.WrongBody, "not_what_was_asked"},
		{"Claude is down", "POST", "/api/contacts/12/analyze", 502, nil, `{"error":"claude"}`, load.HTTPError, "claude"},
		{"the database is down", "GET", "/api/contacts/12", 503, nil, `{"error":"database"}`, load.HTTPError, "database"},
		{"Mainstay has no app", "GET", "/api/contacts/12", 503, ours, `{"error":"no_target"}`, load.HTTPError, "no_target"},
		{"somebody's 504", "GET", "/api/contacts/12", 504, nil, `<html>`, load.HTTPError, "504"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := http.StatusOK
			if c.status == http.StatusCreated {
				want = http.StatusCreated
			}
			req := &http.Request{Method: c.method, URL: &url.URL{Path: c.path}}
			verdict, cause := judge(want)(load.Answer{Request: req, Status: c.status, Header: c.header, Body: []byte(c.body)})
			if verdict != c.verdict || cause != c.cause {
				t.Errorf("judged %v %q, want %v %q", verdict, cause, c.verdict, c.cause)
			}
		})
	}
}

func TestTheMixIsWholeAndMakesItsRequestsFromChanceAlone(t *testing.T) {
	total := 0
	for _, k := range mix() {
		total += k.Weight
		one := func() string {
			req, err := k.Make(context.Background(), "http://app", rand.New(rand.NewPCG(1, 2)))
			if err != nil {
				t.Fatal(err)
			}
			return req.Method + " " + req.URL.String()
		}
		if a, b := one(), one(); a != b {
			t.Errorf("%s: the same chance made %q and %q", k.Name, a, b)
		}
	}
	if total != 100 {
		t.Errorf("the weights add up to %d, want 100", total)
	}
}
