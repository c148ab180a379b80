package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
)

// deploys lists what is kept of past deploys, newest first.
func (s *Server) deploys(w http.ResponseWriter, _ *http.Request) {
	records := []deploy.Record{}
	if s.deps.Deploys != nil {
		for _, r := range s.deps.Deploys.History() {
			records = append(records, shown(r))
		}
	}
	answer(w, struct {
		Deploys []deploy.Record `json:"deploys"`
	}{records})
}

// deployLine is one line of the answer to a deploy: what happens as it happens,
// and in the last line how it ended.
type deployLine struct {
	Progress *deploy.Progress `json:"progress,omitempty"`
	Record   *deploy.Record   `json:"record,omitempty"`
	Error    *Problem         `json:"error,omitempty"`
}

// deploy runs one deploy for as long as the client stays: hanging up gives it up.
func (s *Server) deploy(w http.ResponseWriter, r *http.Request) {
	if s.deps.Deploys == nil {
		problem(http.StatusNotFound, "this Mainstay runs no app", "start one with mainstay run -- COMMAND").answer(w)
		return
	}
	var request deploy.Request
	if p := read(r.Body, &request, `send {"command": ["npm", "start"]}`); p != nil {
		p.answer(w)
		return
	}
	out := &lines{w: w, control: http.NewResponseController(w)}
	// From here on only silence of the network counts: see write.
	_ = out.control.SetReadDeadline(time.Time{})
	_ = out.control.SetWriteDeadline(time.Time{})
	record, err := s.deps.Deploys.Deploy(r.Context(), request, func(step deploy.Progress) {
		step.Text = hide(step.Text)
		out.write(deployLine{Progress: &step})
	})
	if err != nil {
		p := refusal(err)
		if !out.begun {
			_ = out.control.SetWriteDeadline(time.Now().Add(lineLimit))
			p.answer(w)
			return
		}
		out.write(deployLine{Record: recorded(record), Error: p})
		return
	}
	out.write(deployLine{Record: recorded(record)})
}

// read decodes one JSON object, strictly.
func read(body io.Reader, into any, mend string) *Problem {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return problem(http.StatusRequestEntityTooLarge, "the request is larger than 1 MiB", "")
		}
		return problem(http.StatusBadRequest, "the request is not the JSON that is expected here: "+hide(err.Error()), mend)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return problem(http.StatusBadRequest, "there is something behind the request's JSON", "send one object")
	}
	return nil
}

// order passes on what a person says about a deploy, and answers when it is done:
// with the record, if there is one.
func (s *Server) order(w http.ResponseWriter, r *http.Request) {
	give, known := map[string]func(context.Context, deploy.Order) (deploy.Record, error){}, false
	if d := s.deps.Deploys; d != nil {
		give = map[string]func(context.Context, deploy.Order) (deploy.Record, error){
			"rollback": d.Rollback, "promote": d.Promote, "freeze": d.Freeze,
			"settle": func(ctx context.Context, o deploy.Order) (deploy.Record, error) {
				return deploy.Record{}, d.Settle(ctx, o)
			},
		}
		_, known = give[r.PathValue("order")]
	}
	if !known {
		problem(http.StatusNotFound, "there is no order "+clip(r.PathValue("order"))+" here", "the orders are rollback, promote, freeze and settle").answer(w)
		return
	}
	var o deploy.Order
	if p := read(r.Body, &o, `send {"who": "ann", "why": "it is slow"}`); p != nil {
		p.answer(w)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // a drain may take longer
	_ = control.SetWriteDeadline(time.Time{})
	record, err := give[r.PathValue("order")](r.Context(), o)
	_ = control.SetWriteDeadline(time.Now().Add(lineLimit))
	if err != nil {
		refusal(err).answer(w)
		return
	}
	answer(w, deployLine{Record: recorded(record)})
}

// maintenance switches maintenance mode on or off.
func (s *Server) maintenance(w http.ResponseWriter, r *http.Request) {
	if s.deps.Deploys == nil {
		problem(http.StatusNotFound, "this Mainstay runs no app", "start one with mainstay run -- COMMAND").answer(w)
		return
	}
	var m maintenanceRequest
	if p := read(r.Body, &m, `send {"on": true}`); p != nil {
		p.answer(w)
		return
	}
	if err := s.deps.Deploys.Maintenance(m.On, m.Order); err != nil {
		refusal(err).answer(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

type maintenanceRequest struct {
	On bool `json:"on"`
	deploy.Order
}

// recorded is the record of a deploy that came far enough to have one.
func recorded(r deploy.Record) *deploy.Record {
	if r.Number == 0 {
		return nil
	}
	r = shown(r)
	return &r
}

func refusal(err error) *Problem {
	status := http.StatusUnprocessableEntity
	switch {
	case errors.Is(err, deploy.ErrBusy), errors.Is(err, deploy.ErrRefused):
		status = http.StatusConflict
	case errors.Is(err, deploy.ErrNotRunning):
		status = http.StatusServiceUnavailable
	}
	return problem(status, hide(err.Error()), "")
}

const lineLimit = 10 * time.Second // for a client to take a line

// lines writes JSON values, one a line, each at once.
type lines struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

// write sends one line. A client that is gone is noticed by its context.
func (l *lines) write(v any) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	_ = l.control.SetWriteDeadline(time.Now().Add(lineLimit))
	encode(l.w, v)
	_ = l.control.Flush()
}
