package pooler

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestWhatPinsIsCountedAndNamedToThoseWhoWaitInVain(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { one(d); d.Pool.AcquireTimeout = 2 * time.Second })))
	client, other := h.connect(t), h.connect(t)
	counted := func() map[string]float64 {
		by := map[string]float64{}
		for _, l := range h.Levels() {
			if l.Name == "mainstay_pooler_pinned" && l.Labels[0].Value == "app" {
				by[l.Labels[1].Value] = l.Value
			}
		}
		return by
	}
	if n := counted(); len(n) != 10 || n["PREPARE"] != 0 {
		t.Errorf("before: %v", n)
	}
	do(t, client, "create temp table kept (n int); select pg_advisory_lock(5)", pgx.QueryExecModeSimpleProtocol)
	await(t, "it is counted", func() bool {
		n := counted()
		return n["advisory lock"] == 1 && n["temporary table"] == 1 && n["PREPARE"] == 0
	})
	_, err := other.Exec(t.Context(), "select 1")
	if sqlState(err) != "53300" || !strings.Contains(err.Error(), "pinned by: temporary table, advisory lock") {
		t.Errorf("got %v", err)
	}
	do(t, client, "drop table kept; select pg_advisory_unlock(5)", pgx.QueryExecModeSimpleProtocol)
	await(t, "it is over", func() bool { n := counted(); return n["advisory lock"] == 0 && n["temporary table"] == 0 })
}
