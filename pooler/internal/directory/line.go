package directory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// Lines are connections on which questions are asked, and on which no client has any say:
// one to each server is kept when it is not needed, for a while.
type lines struct {
	idle time.Duration // how long that is; 0: none is kept

	mu     sync.Mutex           // never held while a connection is written to or closed
	kept   map[string]*line     // by server
	down   map[string]time.Time // since when it accepts no connection, as far as is known
	closed bool
	ending sync.WaitGroup // connections that were kept, and are being closed
}

type line struct {
	*upstream.Conn
	timer *time.Timer // closes it
}

// session is what makes a question mean the same whoever asks, and whatever the server is
// told by default.
var session = []string{"search_path=pg_catalog", "datestyle=ISO", "timezone=UTC", "statement_timeout=5000", "application_name=mainstay auth_query"}

// ask asks one question and returns the rows; null is "".
func (l *lines) ask(ctx context.Context, at Server, sql, parameter string) (rows [][]string, err error) {
	server := at.Target.String()
	for {
		c := l.take(server)
		used := c != nil
		if !used {
			if c, err = l.connect(ctx, at); err != nil {
				return nil, err
			}
		}
		rows, err = exchange(ctx, c, sql, parameter)
		if _, refused := errors.AsType[*refusal](err); err == nil || refused {
			l.keep(server, c)
			return rows, err
		}
		_ = c.Close() // what went wrong is known
		if !used || ctx.Err() != nil {
			return nil, err
		} // it has died while nobody asked
	}
}

// connectAgain is how long a server is left alone that accepts no connection.
const connectAgain = 100 * time.Millisecond

// connect opens a connection. It waits for a server that accepts none for the moment, unless that has lasted too long.
func (l *lines) connect(ctx context.Context, at Server) (*upstream.Conn, error) {
	target, server := at.Target.Only(session...), at.Target.String()
	for {
		once, cancel := context.WithTimeout(ctx, limit)
		c, err := target.Connect(once, at.Dial)
		cancel()
		if since := l.reached(server, err == nil); err == nil || !upstream.Passing(err) || time.Since(since) >= at.Patience {
			return c, err
		}
		select {
		case <-time.After(connectAgain):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// reached notes whether a server accepts connections, and returns since when it does not.
func (l *lines) reached(server string, ok bool) (since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ok {
		delete(l.down, server)
		return since
	}
	if l.down == nil {
		l.down = map[string]time.Time{}
	}
	if since, ok = l.down[server]; !ok {
		since = time.Now()
		l.down[server] = since
	}
	return since
}

// take returns the connection that is kept, nil if there is none.
func (l *lines) take(server string) *upstream.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kept[server]
	if k == nil {
		return nil
	}
	k.timer.Stop()
	delete(l.kept, server)
	return k.Conn
}

// keep keeps the connection for the next question, if none is kept.
func (l *lines) keep(server string, c *upstream.Conn) {
	if !l.shelve(server, c) {
		hangUp(c)
	}
}

// shelve keeps the connection; false if it is not to be kept.
func (l *lines) shelve(server string, c *upstream.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.idle == 0 || l.kept[server] != nil || c.SetDeadline(time.Time{}) != nil {
		return false
	}
	if l.kept == nil {
		l.kept = map[string]*line{}
	}
	k := &line{Conn: c}
	k.timer = time.AfterFunc(l.idle, func() { l.expire(server, k) })
	l.kept[server] = k
	return true
}

// expire closes a connection that nobody has needed, if that is still so.
func (l *lines) expire(server string, k *line) {
	l.mu.Lock()
	due := l.kept[server] == k
	if due {
		delete(l.kept, server)
		l.ending.Add(1)
	}
	l.mu.Unlock()
	if due {
		defer l.ending.Done()
		hangUp(k.Conn)
	}
}

// close closes what is kept; forever: from now on nothing is, and nothing that was is still
// being closed. A server that takes its time holds up whoever calls it, and nobody else.
func (l *lines) close(forever bool) {
	var all sync.WaitGroup
	l.mu.Lock()
	l.closed = l.closed || forever
	for _, k := range l.kept {
		k.timer.Stop()
		l.ending.Add(1)
		all.Go(func() {
			defer l.ending.Done()
			hangUp(k.Conn)
		})
	}
	clear(l.kept)
	l.mu.Unlock()
	all.Wait()
	if forever {
		l.ending.Wait()
	}
}

// hangUp ends a connection, politely if that does not take long. A goodbye fits every
// socket's buffer, unless the server takes nothing any more.
func hangUp(c *upstream.Conn) {
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write(pgwire.Append(nil, pgwire.Terminate)); err != nil {
		_ = c.Raw.Close() // TLS would say goodbye too, and wait longer
		return
	}
	_ = c.Close() // nothing is lost with it
}

// A refusal is PostgreSQL's error, after which the connection is as good as before.
type refusal struct{ message string }

func (r *refusal) Error() string { return r.message }

// exchange asks a question and reads the answer to its end.
func exchange(ctx context.Context, c *upstream.Conn, sql, parameter string) (rows [][]string, err error) {
	until := time.Now().Add(limit)
	if last, ok := ctx.Deadline(); ok && last.Before(until) {
		until = last
	}
	if err := c.SetDeadline(until); err != nil {
		return nil, err
	}
	nul := []byte{0}
	bind := []byte{0, 0, 0, 0, 0, 1} // no names, formats all text, one parameter
	bind = binary.BigEndian.AppendUint32(bind, uint32(len(parameter)))
	bind = append(append(bind, parameter...), 0, 0)
	out := pgwire.Append(nil, pgwire.Parse, nul, []byte(sql), nul, []byte{0, 0})
	out = pgwire.Append(out, pgwire.Bind, bind)
	out = pgwire.Append(out, pgwire.Execute, []byte{0, 0, 0, 0, 0})
	out = pgwire.Append(out, pgwire.Sync)
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	var refused error
	for {
		typ, body, err := c.In.Next()
		if err != nil {
			return nil, err
		}
		switch typ {
		case pgwire.DataRow:
			row, err := columns(body)
			if err != nil {
				return nil, err
			}
			if rows = append(rows, row); len(rows) > maxRows {
				return nil, fmt.Errorf("more than %d rows", maxRows)
			}
		case pgwire.ErrorResponse:
			refused = &refusal{fmt.Sprintf("auth_query: %s (%s)", pgwire.Field(body, 'M'), pgwire.Field(body, 'C'))}
		case pgwire.ReadyForQuery:
			if len(body) != 1 || body[0] != pgwire.Idle {
				return nil, errors.New("auth_query has left a transaction open")
			}
			return rows, refused
		}
	}
}

// maxRows bounds an answer: the roles of one user.
const maxRows = 10_000

func columns(body []byte) (row []string, err error) {
	malformed := errors.New("malformed DataRow")
	if len(body) < 2 {
		return nil, malformed
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	for range n {
		if len(body) < 4 {
			return nil, malformed
		}
		size := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		if size < 0 {
			row = append(row, "")
			continue
		}
		if int(size) > len(body) {
			return nil, malformed
		}
		row = append(row, string(body[:size]))
		body = body[size:]
	}
	return row, nil
}
