package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// Databases is what admin needs of the pooler.
type Databases interface {
	// Look describes the pools, the clients or the top queries; ok is false for
	// anything else.
	Look(what string) (v any, ok bool)
	// Pause ends with ctx at the latest.
	Pause(ctx context.Context, database string) error
	Resume(database string) error
	Reconnect(database string) error
	// Kill returns how many clients it ended.
	Kill(o DBOrder) (int, error)
}

// ErrNoSuch is wrapped by errors of [Databases] that mean that what an order names
// is not there.
var ErrNoSuch = errors.New("there is no such thing")

// A DBOrder says what a person wants of the pooler.
type DBOrder struct {
	Database string        `json:"database,omitempty"` // "" stands for all where that makes sense
	ID       uint32        `json:"id,omitempty"`       // of a client
	User     string        `json:"user,omitempty"`
	Why      string        `json:"why,omitempty"`
	Who      string        `json:"who,omitempty"`
	Within   time.Duration `json:"within,omitempty"` // how long a pause may wait; in nanoseconds
}

// DBDone is the answer to an order.
type DBDone struct {
	Killed int `json:"killed,omitempty"`
}

// pauseLimit is how long a pause waits if nothing else is said.
const pauseLimit = time.Minute

func (s *Server) noPooler(w http.ResponseWriter) bool {
	if s.deps.Databases != nil {
		return false
	}
	problem(http.StatusNotFound, "the pooler is off", "set DATABASE_URL, or write pooler.databases").answer(w)
	return true
}

// lookDB answers what the pooler says of itself.
func (s *Server) lookDB(w http.ResponseWriter, r *http.Request) {
	if s.noPooler(w) {
		return
	}
	v, ok := s.deps.Databases.Look(r.PathValue("what"))
	if !ok {
		problem(http.StatusNotFound, "there is no view "+clip(r.PathValue("what"))+" here", "the views are pools, clients and top").answer(w)
		return
	}
	answer(w, v)
}

// orderDB carries out what a person wants of the pooler.
func (s *Server) orderDB(w http.ResponseWriter, r *http.Request) {
	if s.noPooler(w) {
		return
	}
	var o DBOrder
	if p := read(r.Body, &o, `send {"database": "app"}`); p != nil {
		p.answer(w)
		return
	}
	var done DBDone
	var err error
	d, what := s.deps.Databases, r.PathValue("what")
	switch what {
	case "pause":
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Time{}) // transactions may take longer
		_ = control.SetWriteDeadline(time.Time{})
		within := o.Within
		if within <= 0 {
			within = pauseLimit
		}
		ctx, cancel := context.WithTimeout(r.Context(), within)
		err = d.Pause(ctx, o.Database)
		cancel()
		_ = control.SetWriteDeadline(time.Now().Add(lineLimit))
	case "resume":
		err = d.Resume(o.Database)
	case "reconnect":
		err = d.Reconnect(o.Database)
	case "kill":
		done.Killed, err = d.Kill(o)
	default:
		problem(http.StatusNotFound, "there is no order "+clip(what)+" here", "the orders are pause, resume, reconnect and kill").answer(w)
		return
	}
	if err != nil {
		refuseDB(err).answer(w)
		return
	}
	s.deps.Sink.Emit(telemetry.Event{
		Time: time.Now(), Part: "admin", Name: "db_" + what, Level: slog.LevelInfo, Text: "An order to the pooler was carried out.",
		Attrs: []slog.Attr{slog.String("database", o.Database), slog.String("user", o.User), slog.Int("killed", done.Killed), slog.String("who", o.Who), slog.String("why", o.Why)},
	})
	answer(w, done)
}

func refuseDB(err error) *Problem {
	status := http.StatusConflict
	if errors.Is(err, ErrNoSuch) {
		status = http.StatusNotFound
	}
	return problem(status, hide(err.Error()), "")
}

// LookDB asks for one of the pooler's views: pools, clients or top.
func (c *Client) LookDB(ctx context.Context, what string, out any) error {
	return c.call(ctx, http.MethodGet, "/api/v1/db/"+url.PathEscape(what), out)
}

// OrderDB gives the pooler an order: pause, resume, reconnect or kill. A pause lasts
// until everything has come back, or its time is over.
func (c *Client) OrderDB(ctx context.Context, what string, o DBOrder) (done DBDone, err error) {
	return done, c.post(ctx, "/api/v1/db/"+url.PathEscape(what), o, &done)
}
