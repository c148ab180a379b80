package pooler

import (
	"errors"
	"fmt"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/telemetry"
)

// A Code says how a query, or a login that failed, ended. The set is closed; the
// same word stands in the metric label, the log and the docs, and the SQLSTATE
// that belongs to it in the error that the client gets.
type Code string

// The codes, by the side that broke.
const (
	OK Code = "ok"

	SQLError      Code = "sql_error"
	Canceled      Code = "canceled"
	ClientGone    Code = "client_gone"
	ClientStalled Code = "client_stalled"
	ProtocolError Code = "protocol_error"
	Denied        Code = "denied"
	NoDatabase    Code = "no_database"
	Unsupported   Code = "unsupported"
	IdleInTx      Code = "idle_in_transaction"
	Killed        Code = "killed"
	ListenBehind  Code = "listen_behind"

	TooManyClients Code = "too_many_clients"
	QueueTimeout   Code = "queue_timeout"
	Stopping       Code = "stopping"
	Internal       Code = "internal"

	ServerError Code = "server_error"
	Unreachable Code = "upstream_unreachable"
	Lost        Code = "upstream_lost"
	ListenLost  Code = "listen_lost"
)

// A Meaning explains a code.
type Meaning struct {
	Code     Code
	SQLState string // of the error that Mainstay sends; "" where PostgreSQL's own error was passed on, or none
	Blame    telemetry.Blame
	Text     string // for the log's reader and the docs
}

// Meanings lists every code, in the order of the docs.
var Meanings = []Meaning{
	{OK, "", telemetry.BlameNone, "PostgreSQL carried it out."},
	{SQLError, "", telemetry.BlameClient, "PostgreSQL refused the statement: a constraint, a syntax error, a deadlock; its error was passed on."},
	{Canceled, "57014", telemetry.BlameClient, "The query was canceled: by its client, by a timeout that is set in PostgreSQL, or by the database's query_timeout."},
	{ClientGone, "", telemetry.BlameClient, "The client hung up before the answer was complete."},
	{ClientStalled, "57P05", telemetry.BlameClient, "The client left an answer unread or a message unfinished for longer than pooler.stall_timeout."},
	{ProtocolError, "08P01", telemetry.BlameClient, "The client sent something that the PostgreSQL protocol does not allow."},
	{Denied, "28P01", telemetry.BlameClient, "The login was refused: unknown user, wrong password, or not from this address."},
	{NoDatabase, "3D000", telemetry.BlameClient, "The client named a database that pooler.databases does not hold."},
	{Unsupported, "0A000", telemetry.BlameClient, "The client asked for something that does not go through a pooler."},
	{IdleInTx, "25P03", telemetry.BlameClient, "The client left a transaction open without a query for longer than the database's idle_in_transaction_timeout."},
	{Killed, "57P01", telemetry.BlameClient, "An administrator ended the session, by mainstay db kill or the admin API."},
	{ListenBehind, "53400", telemetry.BlameClient, "A client that listens left more notifications unread than the database's listen.buffer holds."},

	{TooManyClients, "53300", telemetry.BlameMainstay, "As many clients are logged in as pooler.max_clients, pooler.user_clients or the database's max_clients allows."},
	{QueueTimeout, "53300", telemetry.BlameMainstay, "No server connection became free within the pool's acquire_timeout."},
	{Stopping, "57P01", telemetry.BlameMainstay, "Mainstay is stopping."},
	{Internal, "XX000", telemetry.BlameMainstay, "Mainstay itself failed; this is a bug."},
	{ServerError, "", telemetry.BlameUpstream, "PostgreSQL itself is in trouble (SQLSTATE class 53, 57P, 58 or XX); its error was passed on."},
	{Unreachable, "08001", telemetry.BlameUpstream, "No connection to PostgreSQL could be opened."},
	{Lost, "08006", telemetry.BlameUpstream, "PostgreSQL closed the connection in the middle of the work."},
	{ListenLost, "57P01", telemetry.BlameUpstream, "The connection that listens for all clients was lost or replaced, and notifications may be lost with it; clients that listen are ended if listen.on_loss says so."},
}

var meaning = func() map[Code]Meaning {
	m := make(map[Code]Meaning, len(Meanings))
	for _, v := range Meanings {
		m[v.Code] = v
	}
	return m
}()

// codeOf says what an error of PostgreSQL's own means.
func codeOf(sqlstate string) Code {
	if len(sqlstate) != 5 {
		return ServerError
	}
	switch sqlstate[:2] {
	case "53", "58", "XX":
		return ServerError
	case "57":
		if sqlstate == "57014" {
			return Canceled
		}
		return ServerError
	}
	return SQLError
}

// An ending is why a session ends: the code for us, the fault for the client. All
// errors that a session's steps return are endings or become one.
type ending struct {
	code  Code
	fault pgwire.Fault
	cause error // for the log; may be nil
}

func (e *ending) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.fault.Message, e.cause)
	}
	return e.fault.Message
}

func (e *ending) Unwrap() error { return e.cause }

// end makes an ending with the code's own SQLSTATE.
func end(code Code, message, hint string) *ending {
	return &ending{code: code, fault: pgwire.Fault{SQLState: meaning[code].SQLState, Message: message, Hint: hint}}
}

// endingOf returns err as an ending; an error that nobody expected is Internal.
func endingOf(err error) *ending {
	if e, ok := errors.AsType[*ending](err); ok {
		return e
	}
	e := end(Internal, "internal error of Mainstay", "see Mainstay's log")
	e.cause = err
	return e
}

// because notes what is behind an ending.
func (e *ending) because(err error) *ending {
	e.cause = err
	return e
}

// serverLost ends a session whose server has gone: nobody knows how far it came, so
// that the client has to find out on a new connection.
func (s *session) serverLost(err error) error {
	s.backend.broken.Store(true)
	return end(Lost, "the server closed the connection unexpectedly",
		"connect again; look into PostgreSQL's log for the reason").because(err)
}

// confused ends a session whose server did not answer as the protocol says.
func (s *session) confused(err error) error {
	s.backend.broken.Store(true)
	return end(Internal, "lost track of the server's answers", "connect again").because(err)
}

var errMeaning = errors.New("a statement's name was pipelined behind an error with two meanings")

var errOutOfStep = errors.New("an answer that nobody asked for")
