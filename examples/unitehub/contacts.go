package main

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
)

type workspace struct {
	ID        int64     `json:"id" db:"id"`
	Name      string    `json:"name" db:"name"`
	Plan      string    `json:"plan" db:"plan"`
	CreatedAt time.Time `json:"created_at" db:"created_at"`
}

type user struct {
	ID    int64  `json:"id" db:"id"`
	Email string `json:"email" db:"email"`
	Name  string `json:"name" db:"name"`
}

type contact struct {
	ID          int64      `json:"id" db:"id"`
	WorkspaceID int64      `json:"workspace_id" db:"workspace_id"`
	OwnerID     *int64     `json:"owner_id" db:"owner_id"`
	Name        string     `json:"name" db:"name"`
	Email       string     `json:"email" db:"email"`
	Company     string     `json:"company" db:"company"`
	Stage       string     `json:"stage" db:"stage"`
	ValueCents  int64      `json:"value_cents" db:"value_cents"`
	Notes       string     `json:"notes" db:"notes"`
	Analysis    *string    `json:"analysis" db:"analysis"`
	AnalyzedAt  *time.Time `json:"analyzed_at" db:"analyzed_at"`
	CreatedAt   time.Time  `json:"created_at" db:"created_at"`
}

const contactColumns = `id, workspace_id, owner_id, name, email, company, stage, value_cents, notes, analysis, analyzed_at, created_at`

func listWorkspaces(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	list[workspace](w, r, conn, `SELECT id, name, plan, created_at FROM workspaces ORDER BY id`)
}

func listUsers(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	list[user](w, r, conn, `SELECT id, email, name FROM users WHERE workspace_id = $1 ORDER BY id`, id(r))
}

func listContacts(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	list[contact](w, r, conn, `SELECT `+contactColumns+` FROM contacts WHERE workspace_id = $1 ORDER BY id DESC LIMIT 25`, id(r))
}

// list answers with every row of the query.
func list[T any](w http.ResponseWriter, r *http.Request, conn *pgx.Conn, sql string, args ...any) {
	rows, err := conn.Query(r.Context(), sql, args...)
	if err != nil {
		fail(w, r, err)
		return
	}
	items, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	if err != nil {
		fail(w, r, err)
		return
	}
	reply(w, http.StatusOK, map[string][]T{"items": items})
}

func getContact(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	c, err := findContact(r, conn)
	if err != nil {
		fail(w, r, err)
		return
	}
	reply(w, http.StatusOK, c)
}

// findContact reads the contact that the path names.
func findContact(r *http.Request, conn *pgx.Conn) (contact, error) {
	rows, err := conn.Query(r.Context(), `SELECT `+contactColumns+` FROM contacts WHERE id = $1`, id(r))
	if err != nil {
		return contact{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[contact])
}

// createContact adds a contact and, in the same transaction, the activity that
// says so.
func createContact(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	var in struct{ Name, Email, Company string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Name == "" || in.Email == "" {
		reply(w, http.StatusBadRequest, failure{"invalid", "a contact needs a name and an email"})
		return
	}
	var c contact
	err := pgx.BeginFunc(r.Context(), conn, func(tx pgx.Tx) error {
		rows, err := tx.Query(r.Context(), `INSERT INTO contacts (workspace_id, name, email, company)
			SELECT id, $2, $3, $4 FROM workspaces WHERE id = $1 RETURNING `+contactColumns,
			id(r), in.Name, in.Email, in.Company)
		if err != nil {
			return err
		}
		if c, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[contact]); err != nil {
			return err
		}
		_, err = tx.Exec(r.Context(), `INSERT INTO activities (workspace_id, contact_id, kind) VALUES ($1, $2, 'created')`,
			c.WorkspaceID, c.ID)
		return err
	})
	if err != nil {
		fail(w, r, err)
		return
	}
	reply(w, http.StatusCreated, c)
}
