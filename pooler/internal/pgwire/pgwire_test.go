package pgwire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestTheTrailingCommentGivesTheTrace(t *testing.T) {
	const tp = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for text, want := range map[string]string{
		"select 1 /*traceparent='" + tp + "'*/":                                   tp,
		"select 1 /*action='%2Fp*d',traceparent='" + tp + "',x='y'*/":             tp,
		"select 1/*a='1', traceparent='" + tp + "'*/ ; \n":                        tp,
		"select 1 /* traceparent='" + strings.ReplaceAll(tp, "-", "%2D") + "' */": tp,
		"select 1 /*traceparent='" + strings.ReplaceAll(tp, "-", "%2d") + "'*/":   tp,
		"select '/*x' /*traceparent='" + tp + "'*/":                               tp,
		"/*traceparent='" + tp + "'*/":                                            tp,
		"/*traceparent='" + tp + "'*/ select 1":                                   "",
		"select 1 -- traceparent='" + tp + "'":                                    "",
		"select 1 /*xtraceparent='" + tp + "'*/":                                  "",
		"select 1 /*a='\\',traceparent=\\'" + tp + "'*/":                          "",
		"select 1 /*xtraceparent='nothing',traceparent='" + tp + "'*/":            tp,
		"select 1 /*traceparent='" + tp + "0'*/":                                  "",
		"select 1 /*traceparent='" + tp[1:] + "'*/":                               "",
		"select 1 /*traceparent='" + tp + "*/":                                    "",
		"select 1 /*traceparent='%4'*/":                                           "",
		"select 1 /*traceparent='%zz'*/":                                          "",
		"select 1 /*traceparent='*/":                                              "",
		"":                                                                        "",
		"*/":                                                                      "",
		"/*/":                                                                     "",
		"select 1 /*traceparent='" + tp + "'" + strings.Repeat(" ", CommentWindow) + "*/": "",
	} {
		got, ok := FindTraceparent([]byte(text))
		if ok != (want != "") || ok && string(got[:]) != want {
			t.Errorf("%q: got %q, %v", text, got, ok)
		}
	}
}

func BenchmarkFindTraceparent(b *testing.B) {
	for name, text := range map[string]string{
		"traced":  "SELECT abalance FROM pgbench_accounts WHERE aid = 4711 /*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/;",
		"encoded": "SELECT 1 /*traceparent='00%2D4bf92f3577b34da6a3ce929d0e0e4736%2D00f067aa0ba902b7%2D01'*/",
		"plain":   "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;",
	} {
		b.Run(name, func(b *testing.B) {
			text := []byte(text)
			b.ReportAllocs()
			for b.Loop() {
				FindTraceparent(text)
			}
		})
	}
}

func FuzzFindTraceparent(f *testing.F) {
	f.Add([]byte("select 1 /*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/"))
	f.Add([]byte("/*traceparent='%30%3"))
	f.Add([]byte("/*traceparent=''*/"))
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		tp, ok := FindTraceparent(text)
		if !bytes.Equal(before, text) {
			t.Fatal("the text was changed")
		}
		if ok && !bytes.Contains(text, []byte("*/")) {
			t.Fatalf("%q from %q, which has no comment", tp, text)
		}
	})
}

// stream is several messages, one of which does not fit a small buffer.
var stream = func() (b []byte) {
	b = Append(b, 'T', []byte("row description"))
	for range 5 {
		b = Append(b, DataRow, bytes.Repeat([]byte("x"), 30))
	}
	b = Append(b, DataRow, bytes.Repeat([]byte("y"), 5000))
	b = Append(b, CommandComplete, []byte("SELECT 6\x00"))
	return AppendReady(b, Idle)
}()

func TestAReaderPassesEveryByteOnHoweverTheyCome(t *testing.T) {
	for name, src := range map[string]io.Reader{
		"at once":      bytes.NewReader(stream),
		"byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
		"by halves":    iotest.HalfReader(bytes.NewReader(stream)),
		"with the end": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		var out, types []byte
		r := NewReader(src, 64)
		for {
			for !r.Partial() {
				typ, n, ok, err := r.Header()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				types = append(types, typ)
				r.Pass(HeaderSize + n)
			}
			out = append(out, r.Run()...)
			r.Taken()
			if err := r.Fill(); err != nil {
				break
			}
		}
		if !bytes.Equal(out, stream) || string(types) != "TDDDDDDCZ" {
			t.Errorf("%s: %d of %d bytes, messages %s", name, len(out), len(stream), types)
		}
	}
}

func TestASkippedMessageIsNotPassedOn(t *testing.T) {
	var b []byte
	b = Append(b, ParseComplete)
	b = Append(b, BindComplete)
	b = Append(b, ParseComplete)
	b = AppendReady(b, Idle)
	r := NewReader(iotest.OneByteReader(bytes.NewReader(b)), 64)
	var out []byte
	for len(out) < 11 {
		typ, n, ok, err := r.Header()
		if err != nil {
			t.Fatal(err)
		}
		if !ok || r.Buffered() < HeaderSize+n {
			if err := r.Fill(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if typ == ParseComplete {
			r.Skip(HeaderSize + n)
			continue
		}
		r.Pass(HeaderSize + n)
		out = append(out, r.Run()...)
		r.Taken()
	}
	if string(out) != string(AppendReady(Append(nil, BindComplete), Idle)) {
		t.Errorf("passed %q", out)
	}
}

func TestADroppedMessageIsNotPassedOnHoweverItComes(t *testing.T) {
	var b []byte
	b = Append(b, ParseComplete)
	b = Append(b, RowDescription, make([]byte, 200)) // more than the buffer holds
	b = AppendReady(b, Idle)
	for what, src := range map[string]io.Reader{"byte by byte": iotest.OneByteReader(bytes.NewReader(b)), "at once": bytes.NewReader(b)} {
		r := NewReader(src, 64)
		var out []byte
		for len(out) < 11 {
			typ, n, ok, err := r.Header()
			if err != nil {
				t.Fatal(err)
			}
			if ok && !r.Partial() {
				if typ == RowDescription {
					r.Drop(HeaderSize + n)
					continue
				}
				r.Pass(HeaderSize + n)
			}
			out = append(out, r.Run()...)
			r.Taken()
			if len(out) < 11 && (!ok || r.Partial()) {
				if err := r.Fill(); err != nil {
					t.Fatalf("%s: %v behind %q", what, err, out)
				}
			}
		}
		if want := string(Append(nil, ParseComplete)) + string(AppendReady(nil, Idle)); string(out) != want {
			t.Errorf("%s: %q, want %q", what, out, want)
		}
	}
}

func TestWhatWasReadCanBeReadAgain(t *testing.T) {
	r := NewReader(strings.NewReader("abcdefgh"), 10)
	if err := r.Fill(); err != nil {
		t.Fatal(err)
	}
	r.Skip(5)
	if got := string(r.Behind(3)); got != "cde" || r.Behind(6) != nil {
		t.Errorf("behind: %q", got)
	}
	if !r.Unread([]byte("1234567")) || string(r.Peek(r.Buffered())) != "1234567fgh" || r.Unread([]byte("x")) {
		t.Errorf("it reads %q", r.Peek(r.Buffered()))
	}
	if r.Room(1); !r.Unread([]byte("x")) || string(r.Peek(r.Buffered())) != "x1234567fgh" {
		t.Errorf("with more room it reads %q", r.Peek(r.Buffered()))
	}
}

func TestALengthThatNoMessageHasIsRefused(t *testing.T) {
	for text, want := range map[string]error{
		"Q\x00\x00\x00\x03": ErrTooShort, "Q\x00\x00\x00\x00": ErrTooShort,
		"Q\x80\x00\x00\x00": ErrTooLong, "Q\xff\xff\xff\xff": ErrTooLong, "Q\x40\x00\x00\x04": ErrTooLong,
	} {
		r := NewReader(strings.NewReader(text), 64)
		if _, _, err := r.Next(); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
	r := NewReader(bytes.NewReader(Append(nil, 'R', make([]byte, 100))), 64)
	if _, _, err := r.Next(); !errors.Is(err, ErrTooLong) {
		t.Errorf("a login message that does not fit: %v", err)
	}
}

func TestTheEndOfACycleIsFound(t *testing.T) {
	message := func(types string) (b []byte) {
		for _, typ := range []byte(types) {
			b = Append(b, typ, []byte("body"))
		}
		return b
	}
	for types, want := range map[string]Extent{
		"Q": Whole, "PBDES": Whole, "F": Whole, "S": Whole, "QQ": Whole, "PBE": Open, "": Open,
		"PH": Wants, "PBEQ": Wants, "PF": Wants, "d": Wants, "PX": Wants, "X": Wants, "!": Wants,
	} {
		b := message(types)
		r := NewReader(bytes.NewReader(b), 256)
		if len(b) > 0 {
			if err := r.Fill(); err != nil {
				t.Fatal(err)
			}
		}
		if got := r.Cycle(); got != want {
			t.Errorf("%s: %v, want %v", types, got, want)
		}
	}
	cut := message("PBES")
	r := NewReader(bytes.NewReader(cut[:len(cut)-1]), 256)
	if err := r.Fill(); err != nil || r.Cycle() != Open {
		t.Error("a cycle whose last byte is missing is taken for whole")
	}
}

func FuzzReader(f *testing.F) {
	f.Add(stream, 64)
	f.Add([]byte("Q\x00\x00\x00\x04S\x00\x00\x00\x04"), 16)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size < 16 || size > 4096 {
			return
		}
		r := NewReader(iotest.HalfReader(bytes.NewReader(in)), size)
		var out []byte
		for {
			r.Cycle()
			r.Plain()
			for !r.Partial() {
				_, n, ok, err := r.Header()
				if err != nil {
					return
				}
				if !ok {
					break
				}
				r.Pass(HeaderSize + n)
			}
			out = append(out, r.Run()...)
			r.Taken()
			if err := r.Fill(); err != nil {
				break
			}
		}
		if !bytes.HasPrefix(in, out) || len(in)-len(out) >= HeaderSize {
			t.Fatalf("%d bytes in, %d out", len(in), len(out))
		}
	})
}

func TestAStartupPacketIsReadAsPgprotoWritesIt(t *testing.T) {
	want := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion32, Parameters: map[string]string{"user": "ann", "database": "app", "options": "-c x=1"}}
	packet, err := want.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	ssl, err := (&pgproto3.SSLRequest{}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(iotest.OneByteReader(bytes.NewReader(append(ssl, packet...))), MaxStartup)
	if got, err := r.ReadStartup(); err != nil || got.Kind != StartTLS {
		t.Fatalf("%+v, %v", got, err)
	}
	got, err := r.ReadStartup()
	if err != nil || got.Kind != StartSession || got.Minor != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, value := range want.Parameters {
		if got.Get(name) != value {
			t.Errorf("%s: %q", name, got.Get(name))
		}
	}
}

func TestWhatIsWrittenIsReadByPgproto(t *testing.T) {
	var b []byte
	b = AppendNegotiate(b, 0, []string{"_pq_.a", "_pq_.b"})
	b = AppendParameter(b, "TimeZone", "UTC")
	b = Fault{SQLState: "53300", Message: "full", Hint: "wait"}.AppendFatal(b)
	b = AppendReady(b, InBlock)
	front := pgproto3.NewFrontend(bytes.NewReader(b), io.Discard)
	var got []any
	for range 4 {
		m, err := front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.NegotiateProtocolVersion:
			got = append(got, m.UnrecognizedOptions)
		case *pgproto3.ParameterStatus:
			got = append(got, m.Name+"="+m.Value)
		case *pgproto3.ErrorResponse:
			got = append(got, m.Severity+m.Code+m.Message+m.Hint)
		case *pgproto3.ReadyForQuery:
			got = append(got, m.TxStatus)
		}
	}
	want := []any{[]string{"_pq_.a", "_pq_.b"}, "TimeZone=UTC", "FATAL53300fullwait", byte('T')}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseStartup(f *testing.F) {
	f.Add([]byte("\x00\x03\x00\x00user\x00ann\x00\x00"))
	f.Add([]byte("\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02"))
	f.Add([]byte("\x04\xd2\x16\x2f"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		start, err := ParseStartup(packet)
		if err != nil || start.Kind != StartSession {
			return
		}
		again, err := ParseStartup(AppendStartup(nil, start.Parameters)[4:])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(start.Parameters, again.Parameters); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestTagsAreSplit(t *testing.T) {
	for tag, want := range map[string]struct {
		command string
		rows    int64
	}{
		"SELECT 3\x00": {"SELECT", 3}, "INSERT 0 5\x00": {"INSERT", 5}, "CREATE TABLE\x00": {"CREATE TABLE", 0},
		"COPY 12\x00": {"COPY", 12}, "BEGIN\x00": {"BEGIN", 0}, "\x00": {"", 0}, "": {"", 0}, "SELECT 3": {"SELECT", 3},
		"SELECT 99999999999999999999999\x00": {"SELECT 99999999999999999999999", 0}, "X \x00": {"X ", 0},
		"DEALLOCATE ALL\x00": {"DEALLOCATE ALL", 0},
	} {
		command, rows := Tag([]byte(tag))
		if string(command) != want.command || rows != want.rows {
			t.Errorf("%q: %q, %d", tag, command, rows)
		}
	}
}

func TestFieldsOfAnErrorAreFoundEvenIfItIsCutShort(t *testing.T) {
	body := []byte("SERROR\x00VERROR\x00C42P01\x00Mrelation does not exist\x00\x00")
	for cut := range len(body) {
		Field(body[:cut], 'C')
	}
	if got := string(Field(body, 'C')); got != "42P01" {
		t.Error(got)
	}
	if Field(body, 'H') != nil || Field(nil, 'C') != nil {
		t.Error("a field that is not there")
	}
}

func TestAPlainCycleIsMeasured(t *testing.T) {
	msg := func(typ byte, body string) string { return string(Append(nil, typ, []byte(body))) }
	parse, bind, describe, execute, sync := msg(Parse, "\x00select 1\x00\x00\x00"), msg(Bind, "\x00\x00\x00\x00\x00\x00\x00\x00"), msg(Describe, "P\x00"), msg(Execute, "\x00\x00\x00\x00\x00"), msg(Sync, "")
	for _, c := range []struct {
		cycle   string
		between int // -1: it is not plain
	}{
		{parse + bind + describe + execute + sync, 3},
		{parse + sync, 0},
		{parse + msg(Describe, "S\x00") + sync, -1},
		{parse + bind + execute + bind + execute + sync, 4},
		{parse + msg(Bind, "portal\x00\x00\x00\x00\x00\x00\x00\x00") + msg(Execute, "portal\x00\x00\x00\x00\x00") + sync, 2},
		{bind + execute + sync, -1},
		{parse + parse + sync, -1},
		{parse + bind + execute, -1},
		{parse + bind + execute + sync[:4], -1},
		{parse + msg(Bind, "\x00name\x00\x00\x00\x00\x00\x00\x00") + sync, -1},
		{parse + msg(Bind, "portal") + sync, -1},
		{parse + msg(Bind, "portal\x00") + sync, -1},
		{parse + msg(Describe, "Sname\x00") + sync, -1},
		{parse + msg(Describe, "") + sync, -1},
		{parse + msg(Close, "P\x00") + sync, -1},
		{msg(Parse, "name\x00select 1\x00\x00\x00") + sync, -1},
		{msg(Parse, "") + sync, -1},
		{msg(Query, "select 1\x00"), -1},
		{parse, -1},
		{"", -1},
	} {
		const next = "X\x00\x00\x00\x04"
		want := [2]int{}
		if c.between >= 0 {
			want = [2]int{len(c.cycle), c.between}
			c.cycle += next
		}
		r := NewReader(strings.NewReader(c.cycle), 1<<10)
		if c.cycle != "" {
			if err := r.Fill(); err != nil {
				t.Fatal(err)
			}
		}
		if size, between := r.Plain(); [2]int{size, between} != want {
			t.Errorf("%q: %d, %d, want %v", c.cycle, size, between, want)
		}
	}
}

func TestTheMessageThatIsNotAnsweredIsFound(t *testing.T) {
	message := func(types string) (all []byte) {
		for _, typ := range types {
			all = Append(all, byte(typ), []byte{byte(typ)})
		}
		return all
	}
	for _, c := range []struct {
		cycle, answer string
		want          byte
	}{
		{"PBDES", "", 'P'}, {"PBDES", "1", 'B'}, {"PBDES", "N1N2", 'D'}, {"PBDES", "12tT", 'E'}, {"PBDES", "12tTDDD", 'E'}, {"PBDES", "12nC", 'S'},
		{"CPDS", "31t", 'D'}, {"Q", "", 'Q'}, {"", "", 0}, {"BEBES", "2I2", 'E'}, {"BEBES", "2s", 'B'},
	} {
		if typ, body, before := Unanswered(message(c.cycle), message(c.answer)); typ != c.want || typ != 0 && (len(body) != 1 || body[0] != typ || before%6 != 0 || c.cycle[before/6] != typ) {
			t.Errorf("%s, answered with %s: %q %q", c.cycle, c.answer, typ, body)
		}
	}
}
