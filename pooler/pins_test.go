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
	if n := counted(); len(n) != 10 || n["LISTEN"] != 0 {
		t.Errorf("before: %v", n)
	}
	do(t, client, "create temp table kept (n int); listen kept", pgx.QueryExecModeSimpleProtocol)
	await(t, "it is counted", func() bool { n := counted(); return n["LISTEN"] == 1 && n["temporary table"] == 1 && n["PREPARE"] == 0 })
	_, err := other.Exec(t.Context(), "select 1")
	if sqlState(err) != "53300" || !strings.Contains(err.Error(), "pinned by: temporary table, LISTEN") {
		t.Errorf("got %v", err)
	}
	do(t, client, "drop table kept; unlisten *", pgx.QueryExecModeSimpleProtocol)
	await(t, "it is over", func() bool { n := counted(); return n["LISTEN"] == 0 && n["temporary table"] == 0 })
}
