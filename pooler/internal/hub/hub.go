// Package hub is the one connection of a pool that listens for notifications, for all of
// the pool's clients that do. It is opened when the first does and closed when the last
// has ended.
//
// Besides the clients' channels it listens to one of its own, the barrier. What a
// server says there, by NOTIFY, comes in the same order as the notifications: so the
// hub knows exactly from which one on a client listens, and which ones a client sent
// itself.
//
// Only the pooler imports it.
package hub

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A Client is somebody who listens. Its methods must not wait.
type Client interface {
	Ending() bool         // it is about to leave
	Notify(frames []byte) // whole messages for it
	Lost(back bool)       // notifications may have been lost; back: and it listens again
}

// Deps is what a hub needs of its pool.
type Deps struct {
	Dial   func(ctx context.Context) (*upstream.Conn, error)
	Go     func(func())
	Paused func() bool // no connection is to be opened now
	// Report tells of what happened; why is nil where it went well.
	Report func(level slog.Level, name, text string, why error)
}

// A Hub may be used by several goroutines. Its methods wait for the server only where they
// say so: the pooler calls them while it holds locks of its own.
type Hub struct {
	deps    Deps
	barrier string // a channel; random, so that no client speaks there

	Notifications atomic.Uint64 // handed to clients
	Losses        atomic.Uint64 // of the connection, while clients listened

	mu        sync.Mutex // never held while the connection is read from, written to or closed
	running   bool
	conn      *upstream.Conn // nil: not connected
	up        chan struct{}  // closed when it listens to all that was wanted when it was opened
	replace   bool           // the connection is to be closed, and another opened
	members   map[uint32]*member
	channels  map[string]map[*member]struct{}
	asked     []ask      // statements that the server has not answered, in order
	unsent    int        // how many of them, the last ones, are still to be sent
	backlog   int        // the length of those
	more      *sync.Cond // there is one more, or the connection has ended
	number    uint64
	last      map[string]uint64 // of the statement that listened to the channel last
	confirmed map[string]bool   // the server listens
	owners    map[uint32]uint32 // sessions that have a server at this point of the stream, by its process
}

// A member is a client that listens.
type member struct {
	client   Client
	channels map[string]phase
	token    chan struct{} // closed when its barrier has come; nil: none is waited for
}

// A phase is how far a client's LISTEN has come.
type phase uint8

const (
	wanted phase = iota // the hub has yet to listen
	heard               // the hub listens; what comes before the barrier is not for the client
	active
)

// An ask is a statement for the server.
type ask struct {
	number   uint64
	sql      string
	at       time.Time // when it was sent
	channels []string
	done     chan struct{} // closed when it is answered
}

// New makes a hub that has no connection.
func New(deps Deps) *Hub {
	h := &Hub{
		deps: deps, barrier: "_mainstay_" + rand.Text(), up: make(chan struct{}), members: map[uint32]*member{},
		channels: map[string]map[*member]struct{}{},
	}
	h.more = sync.NewCond(&h.mu)
	return h
}

// quote makes an identifier of a channel's name.
func quote(channel string) string { return `"` + strings.ReplaceAll(channel, `"`, `""`) + `"` }

// ListenTo is the SQL that listens to these channels.
func ListenTo(channels []string) string {
	var sql strings.Builder
	for _, c := range channels {
		sql.WriteString("LISTEN " + quote(c) + ";")
	}
	return sql.String()
}

// Opens is the SQL by which a server tells the hub that from now on it is this client's.
func (h *Hub) Opens(id uint32) string {
	return "NOTIFY " + quote(h.barrier) + ",'+" + strconv.FormatUint(uint64(id), 10) + "'"
}

// Closes is the SQL by which it tells that it is not any more: what the client has
// subscribed to is for it from then on.
func (h *Hub) Closes(id uint32) string {
	return "NOTIFY " + quote(h.barrier) + ",'-" + strconv.FormatUint(uint64(id), 10) + "'"
}

// Parts is Closes for a server that listens itself and goes on until it is told not to:
// it hears the barrier too. Notifications come in the same order to all who listen, so
// what it has heard before the barrier, and what the hub hears after it, is all there is.
func (h *Hub) Parts(id uint32) string { return ListenTo([]string{h.barrier}) + h.Closes(id) }

// IsBarrier reports whether a notification is a barrier, and not for any client.
func (h *Hub) IsBarrier(channel string) bool { return channel == h.barrier }

var (
	errUnasked = errors.New("an answer that nobody asked for")
	errLate    = errors.New("the connection that listens could not be opened in time")
	errEnding  = errors.New("the client is being ended")
)

// Subscribe waits until the hub listens to these channels, for the client of this id.
// What comes there is for it from its next barrier on. ctx is the pool's: the connection
// ends with it.
func (h *Hub) Subscribe(ctx context.Context, id uint32, c Client, channels []string, limit time.Duration) error {
	until := time.Now().Add(limit)
	for {
		done, err := h.join(ctx, id, c, channels)
		if err != nil {
			return err
		}
		if done == nil {
			return nil
		}
		select {
		case <-done:
		case <-time.After(min(time.Until(until), 100*time.Millisecond)):
		}
		if c.Ending() {
			return errEnding
		}
		if !time.Now().Before(until) {
			return errLate
		}
	}
}

// join notes what a client wants to hear. It returns nil if the hub listens already,
// and otherwise what to wait for before asking again.
func (h *Hub) join(ctx context.Context, id uint32, c Client, channels []string) (wait <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.member(id, c)
	var missing []string
	for _, c := range channels {
		if _, known := m.channels[c]; !known {
			m.channels[c] = wanted
			if h.channels[c] == nil {
				h.channels[c] = map[*member]struct{}{}
			}
			h.channels[c][m] = struct{}{}
		}
		if !h.confirmed[c] {
			missing = append(missing, c)
		}
	}
	if !h.running {
		h.running = true
		h.deps.Go(func() { h.run(ctx) })
	}
	switch {
	case h.conn == nil:
		return h.up, nil
	case len(missing) == 0:
		for _, c := range channels {
			m.channels[c] = max(m.channels[c], heard)
		}
		return nil, nil
	}
	var unasked []string
	for _, c := range missing {
		if h.last[c] == 0 {
			unasked = append(unasked, c)
		}
	}
	if len(unasked) == 0 || h.backlog >= maxBacklog {
		return h.asked[len(h.asked)-1].done, nil
	}
	return h.ask(ListenTo(unasked), unasked), nil
}

// member returns the client's, a new one if need be. The lock is held.
func (h *Hub) member(id uint32, c Client) *member {
	m := h.members[id]
	if m == nil {
		m = &member{client: c, channels: map[string]phase{}}
		h.members[id] = m
	}
	return m
}

// maxBacklog bounds the statements that are still to be sent: while they are longer, nobody
// asks for more channels. They may be forgotten even so: once for each that was asked for.
const maxBacklog = 64 << 10

// ask puts a statement of the hub's own behind the others; write sends it, since nobody
// may hold the lock while the server takes its time. The lock is held.
func (h *Hub) ask(sql string, listens []string) <-chan struct{} {
	h.number++
	for _, c := range listens {
		h.last[c] = h.number
	}
	a := ask{number: h.number, sql: sql, channels: listens, done: make(chan struct{})}
	h.asked = append(h.asked, a)
	h.unsent++
	h.backlog += len(sql)
	h.more.Broadcast()
	return a.done
}

// awaited are the statements that were sent, and not answered yet. The lock is held.
func (h *Hub) awaited() []ask { return h.asked[:len(h.asked)-h.unsent] }

// answered notes that the server has answered the oldest statement. The lock is held.
func (h *Hub) answered() error {
	if len(h.awaited()) == 0 {
		return errUnasked
	}
	a := h.asked[0]
	h.asked = h.asked[1:]
	for _, c := range a.channels {
		if h.last[c] == a.number {
			h.confirmed[c] = true
		}
	}
	close(a.done)
	return nil
}

// Unsubscribe forgets that the client listens to these channels.
func (h *Hub) Unsubscribe(id uint32, channels []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.members[id]
	if m == nil {
		return
	}
	var sql strings.Builder
	for _, c := range channels {
		delete(m.channels, c)
		delete(h.channels[c], m)
		if len(h.channels[c]) > 0 {
			continue
		}
		delete(h.channels, c)
		if h.conn != nil && h.last[c] != 0 {
			sql.WriteString("UNLISTEN " + quote(c) + ";")
			delete(h.last, c)
			delete(h.confirmed, c)
		}
	}
	if len(m.channels) == 0 && m.token == nil {
		delete(h.members, id)
	}
	if sql.Len() > 0 {
		h.ask(sql.String(), nil)
	}
}

// Leave forgets the client.
func (h *Hub) Leave(id uint32) {
	h.mu.Lock()
	m := h.members[id]
	var channels []string
	if m != nil {
		m.token = nil
		for c := range m.channels {
			channels = append(channels, c)
		}
	}
	h.mu.Unlock()
	h.Unsubscribe(id, channels)
}

// Sync returns a channel that is closed when all that was committed before has been
// handed out: the server says it before it answers what is sent from now on, whatever that
// is. nil if the hub hears nothing now.
func (h *Hub) Sync() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil || !h.confirmed[h.barrier] {
		return nil
	}
	if h.unsent > 0 { // one that many may wait for: a server that takes none must not make them pile up
		return h.asked[len(h.asked)-1].done
	}
	return h.ask("", nil)
}

// AwaitBarrier returns a channel that is closed when the hub has heard what the
// client's server is about to say by [Hub.Closes]; nil if the hub hears nothing now.
func (h *Hub) AwaitBarrier(id uint32, c Client) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil || !h.confirmed[h.barrier] {
		return nil
	}
	m := h.member(id, c)
	m.token = make(chan struct{})
	return m.token
}

// hand gives a notification to those who listen.
func (h *Hub) hand(body []byte) {
	pid, channel, payload, ok := Notification(body)
	if !ok {
		return
	}
	h.mu.Lock()
	if channel == h.barrier {
		h.mark(pid, payload)
		h.mu.Unlock()
		return
	}
	var to []Client
	for m := range h.channels[channel] {
		if m.channels[channel] == active {
			to = append(to, m.client)
		}
	}
	if owner := h.owners[pid]; owner != 0 {
		binary.BigEndian.PutUint32(body, owner)
	}
	h.mu.Unlock()
	if len(to) == 0 {
		return
	}
	frame := pgwire.Append(nil, pgwire.Notification, body)
	for _, c := range to {
		h.Notifications.Add(1)
		c.Notify(frame)
	}
}

// Notification takes a NotificationResponse apart.
func Notification(body []byte) (pid uint32, channel, payload string, ok bool) {
	if len(body) < 4 {
		return 0, "", "", false
	}
	name, text, _, ok := pgwire.Strings(body[4:])
	return binary.BigEndian.Uint32(body), string(name), string(text), ok
}

// mark notes what a server said at the barrier. The lock is held.
func (h *Hub) mark(pid uint32, payload string) {
	if payload == "" {
		return
	}
	id, err := strconv.ParseUint(payload[1:], 10, 32)
	switch {
	case err != nil:
	case payload[0] == '+':
		h.owners[pid] = uint32(id)
	case payload[0] == '-':
		delete(h.owners, pid)
		m := h.members[uint32(id)]
		if m == nil {
			return
		}
		for c, phase := range m.channels {
			if phase == heard {
				m.channels[c] = active
			}
		}
		if m.token != nil {
			close(m.token)
			m.token = nil
		}
		if len(m.channels) == 0 {
			delete(h.members, uint32(id))
		}
	}
}

// Clients lists those who listen.
func (h *Hub) Clients() (all []Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.members {
		all = append(all, m.client)
	}
	return all
}

// Idle reports whether there is neither a connection nor anybody who wants one.
func (h *Hub) Idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.running && len(h.members) == 0
}

// Levels counts who listens to what.
func (h *Hub) Levels() (listeners, channels int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.members {
		if len(m.channels) > 0 {
			listeners++
		}
	}
	return listeners, len(h.channels)
}
