package main

import (
	"net/http"

	"github.com/jackc/pgx/v5"
)

type stage struct {
	Stage      string `json:"stage" db:"stage"`
	Contacts   int64  `json:"contacts" db:"contacts"`
	ValueCents int64  `json:"value_cents" db:"value_cents"`
}

type company struct {
	Company    string `json:"company" db:"company"`
	Contacts   int64  `json:"contacts" db:"contacts"`
	ValueCents int64  `json:"value_cents" db:"value_cents"`
}

type day struct {
	Day        string `json:"day" db:"day"`
	Activities int64  `json:"activities" db:"activities"`
}

// dashboard answers with a workspace's pipeline: what stands in which stage, the
// largest companies, and what happened in the last two weeks.
func dashboard(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	stages, err := collect[stage](r, conn, `SELECT stage, count(*) AS contacts, coalesce(sum(value_cents), 0)::bigint AS value_cents
		FROM contacts WHERE workspace_id = $1 GROUP BY stage ORDER BY stage`)
	if err != nil {
		fail(w, r, err)
		return
	}
	companies, err := collect[company](r, conn, `SELECT company, count(*) AS contacts, sum(value_cents)::bigint AS value_cents
		FROM contacts WHERE workspace_id = $1 GROUP BY company ORDER BY value_cents DESC, company LIMIT 5`)
	if err != nil {
		fail(w, r, err)
		return
	}
	days, err := collect[day](r, conn, `SELECT to_char(happened_at, 'YYYY-MM-DD') AS day, count(*) AS activities
		FROM activities WHERE workspace_id = $1 AND happened_at > now() - interval '14 days' GROUP BY 1 ORDER BY 1`)
	if err != nil {
		fail(w, r, err)
		return
	}
	reply(w, http.StatusOK, map[string]any{"stages": stages, "companies": companies, "days": days})
}

// collect runs a query whose one argument is the workspace.
func collect[T any](r *http.Request, conn *pgx.Conn, sql string) ([]T, error) {
	rows, err := conn.Query(r.Context(), sql, id(r))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}
