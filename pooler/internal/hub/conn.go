package hub

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// run keeps the connection until nobody listens any more, or ctx ends.
func (h *Hub) run(ctx context.Context) {
	for {
		conn := h.connect(ctx)
		if conn == nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		err := h.read(ctx, conn)
		stop()
		conn.Close()
		h.down(ctx, err)
	}
}

// connect opens the connection; nil when there is no need any more.
func (h *Hub) connect(ctx context.Context) *upstream.Conn {
	for tries := 0; ; tries++ {
		h.mu.Lock()
		if ctx.Err() != nil || len(h.members) == 0 {
			h.running = false
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		if !h.deps.Paused() {
			conn, err := h.deps.Dial(ctx)
			if err == nil {
				h.begin(conn)
				return conn
			}
			if tries == 0 {
				h.deps.Report(slog.LevelWarn, "listener_unreachable", "The connection that listens cannot be opened", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(firstAgain<<min(tries, 10), lastAgain)):
		}
	}
}

// begin listens, on a new connection, to everything that is wanted.
func (h *Hub) begin(conn *upstream.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deps.Go(func() { h.write(conn) })
	h.conn, h.replace = conn, false
	h.asked, h.last, h.confirmed, h.owners = nil, map[string]uint64{}, map[string]bool{}, map[uint32]uint32{}
	all := []string{h.barrier}
	for c := range h.channels {
		all = append(all, c)
	}
	h.ask(ListenTo(all), all)
}

// askLimit bounds how long the server may take to take a statement.
const askLimit = 5 * time.Second

// write sends what is asked, one after the other, until the connection ends.
func (h *Hub) write(conn *upstream.Conn) {
	for {
		sql, ok := h.next(conn)
		if !ok {
			return
		}
		_ = conn.SetWriteDeadline(time.Now().Add(askLimit)) // a closed connection is as good
		if _, err := conn.Write(pgwire.AppendQuery(nil, sql)); err != nil {
			_ = conn.Raw.Close() // whoever reads it finds out; TLS would wait to say goodbye
			return
		}
	}
}

// next waits for a statement that is to be sent; false once the connection has ended.
func (h *Hub) next(conn *upstream.Conn) (sql string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.conn == conn && h.unsent == 0 {
		h.more.Wait()
	}
	if h.conn != conn {
		return "", false
	}
	a := &h.asked[len(h.awaited())]
	a.at = time.Now()
	h.unsent--
	h.backlog -= len(a.sql)
	sql, a.sql = a.sql, "" // which may be long
	return sql, true
}

// Waits between attempts to connect.
const (
	firstAgain = 20 * time.Millisecond
	lastAgain  = 5 * time.Second
)

// maxMessage bounds what the server may say at once.
const maxMessage = 64 << 10

// probeEvery is how often a connection that says nothing is asked whether it lives.
const probeEvery = 10 * time.Second

var (
	errMute     = errors.New("the server does not answer")
	errReplaced = errors.New("connections are being replaced")
)

// read hands out what the server says.
func (h *Hub) read(ctx context.Context, conn *upstream.Conn) error {
	first := true
	for {
		if err := h.patience(ctx, conn); err != nil {
			return err
		}
		typ, body, err := conn.In.NextLarge(maxMessage)
		var late []Client
		h.mu.Lock()
		switch {
		case h.replace:
			err = errReplaced
		case errors.Is(err, os.ErrDeadlineExceeded) && len(h.asked) > 0:
			err, typ = nil, 0
			if sent := h.awaited(); len(sent) > 0 && time.Since(sent[0].at) >= probeEvery { // it may have been asked a moment ago
				err = errMute
			}
		case errors.Is(err, os.ErrDeadlineExceeded) && len(h.members) > 0:
			h.ask("", nil)
			err, typ = nil, 0
		case err == nil && typ == pgwire.ReadyForQuery:
			err = h.answered()
			if first && err == nil {
				first, late = false, h.established()
			}
		case err == nil && typ == pgwire.ErrorResponse:
			err = &upstream.Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))}
		}
		h.mu.Unlock()
		if err != nil {
			return err
		}
		if typ == pgwire.Notification {
			h.hand(body)
		}
		h.tellLate(late)
	}
}

// patience sets how long the server may be silent, unless the connection is to end.
func (h *Hub) patience(ctx context.Context, conn *upstream.Conn) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replace {
		return errReplaced
	}
	if err := conn.SetReadDeadline(time.Now().Add(probeEvery)); err != nil {
		return err
	}
	return ctx.Err() // its end sets a deadline, which may have come before this one
}

// established tells those who wait, and returns those who listened before. The lock has been
// held since the answer: whoever learns of that and listens then has lost nothing.
func (h *Hub) established() (late []Client) {
	close(h.up)
	for _, m := range h.members {
		listens := false
		for c, phase := range m.channels {
			listens = listens || phase != wanted
			if phase == heard {
				m.channels[c] = active // its barrier may never come
			}
		}
		if listens {
			late = append(late, m.client)
		}
	}
	return late
}

// tellLate tells those who have listened before that something may be lost.
func (h *Hub) tellLate(late []Client) {
	if len(late) == 0 {
		return
	}
	h.deps.Report(slog.LevelInfo, "listener_back", "The connection that listens is back; its clients are told that notifications may be lost", nil)
	for _, c := range late {
		c.Lost(true)
	}
}

// down notes that the connection has ended.
func (h *Hub) down(ctx context.Context, why error) {
	h.mu.Lock()
	h.conn = nil
	select {
	case <-h.up:
		h.up = make(chan struct{})
	default:
	}
	for _, a := range h.asked {
		close(a.done)
	}
	h.asked, h.unsent, h.backlog = nil, 0, 0
	h.confirmed, h.last = nil, nil
	h.more.Broadcast()
	var ended []Client
	for id, m := range h.members {
		if m.token != nil {
			close(m.token)
			m.token = nil
		}
		listens := false
		for _, phase := range m.channels {
			listens = listens || phase != wanted
		}
		if listens {
			ended = append(ended, m.client)
		}
		if len(m.channels) == 0 {
			delete(h.members, id)
		}
	}
	h.mu.Unlock()
	if ctx.Err() != nil || len(ended) == 0 {
		return
	}
	h.Losses.Add(1)
	h.deps.Report(slog.LevelWarn, "listener_lost", "The connection that listens was lost; notifications are lost until it is back", why)
	for _, c := range ended {
		c.Lost(false)
	}
}

// Renew closes the connection and opens another.
func (h *Hub) Renew() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil {
		h.replace = true
		_ = h.conn.SetReadDeadline(time.Unix(1, 0)) // a closed connection is as good
	}
}
