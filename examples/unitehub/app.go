package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"strconv"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/jackc/pgx/v5"
)

type app struct {
	database string
	claude   anthropic.Client
}

func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", home)
	mux.HandleFunc("GET /api/health", a.withDB(health))
	mux.HandleFunc("GET /api/workspaces", a.withDB(listWorkspaces))
	mux.HandleFunc("GET /api/workspaces/{id}/users", a.withDB(listUsers))
	mux.HandleFunc("GET /api/workspaces/{id}/contacts", a.withDB(listContacts))
	mux.HandleFunc("POST /api/workspaces/{id}/contacts", a.withDB(createContact))
	mux.HandleFunc("GET /api/workspaces/{id}/dashboard", a.withDB(dashboard))
	mux.HandleFunc("GET /api/contacts/{id}", a.withDB(getContact))
	mux.HandleFunc("POST /api/contacts/{id}/analyze", a.withDB(a.analyze))
	return mux
}

// withDB opens a database connection for the request and closes it after: the
// simplest thing that works, and what this example is about.
func (a *app) withDB(next func(http.ResponseWriter, *http.Request, *pgx.Conn)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, err := pgx.Connect(r.Context(), a.database)
		if err != nil {
			log.Printf("%s %s: connect: %v", r.Method, r.URL.Path, err)
			reply(w, http.StatusServiceUnavailable, failure{"database", "the database can't be reached"})
			return
		}
		defer conn.Close(context.WithoutCancel(r.Context()))
		next(w, r, conn)
	}
}

func home(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(`<!doctype html><title>unitehub</title><h1>unitehub</h1>
<p>A small CRM. Try <a href="/api/workspaces">the workspaces</a>,
<a href="/api/workspaces/1/contacts">the contacts of one</a>,
<a href="/api/workspaces/1/dashboard">its dashboard</a>, <a href="/api/health">the health check</a>.</p>
`))
}

func health(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	if err := conn.Ping(r.Context()); err != nil {
		fail(w, r, err)
		return
	}
	reply(w, http.StatusOK, map[string]string{"status": "ok"})
}

// A failure is the body of every answer that is not a success.
type failure struct {
	Error   string `json:"error"` // not_found, invalid, database or claude
	Message string `json:"message"`
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		log.Printf("write an answer: %v", err)
	}
}

// fail answers for a database error.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, pgx.ErrNoRows) {
		reply(w, http.StatusNotFound, failure{"not_found", "there is no such thing"})
		return
	}
	log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
	reply(w, http.StatusInternalServerError, failure{"database", "the query failed"})
}

// id is the {id} of the path; no row has the id 0.
func id(r *http.Request) int64 {
	n, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
