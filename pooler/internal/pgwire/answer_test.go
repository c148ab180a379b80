package pgwire

import (
	"bytes"
	"testing"
)

// said is an answer of messages without bodies, but for what a CommandComplete and a ReadyForQuery need.
func said(types string) (b []byte) {
	for _, typ := range []byte(types) {
		switch typ {
		case CommandComplete:
			b = Append(b, typ, []byte("SELECT 1\x00"))
		case 'I': // a ReadyForQuery
			b = AppendReady(b, Idle)
		case 't': // a RowDescription
			b = Append(b, RowDescription, []byte{0, 0})
		default:
			b = Append(b, typ, []byte{0, 0})
		}
	}
	return b
}

func TestAPlainAnswerIsToldFromOthers(t *testing.T) {
	for types, want := range map[string]bool{
		"tDDCI": true, "12tDCI": true, "2DCI": true, "12nCI": true, "CI": true, "1tn2CI": true,
		"tDCCI": false, "tDC": false, "tDI": false, "CIC": false, "2tD1CI": false, "CE": false, "NCI": false, "SCI": false, "ACI": false, "sI": false, "3CI": false, "": false,
	} {
		b := said(types)
		tag, parsed, ok := PlainAnswer(b)
		if ok != want || ok && (string(tag) != "SELECT 1\x00" || parsed != (types[0] == '1')) {
			t.Errorf("%s: %q, parsed %v, %v", types, tag, parsed, ok)
		}
		for n := range b {
			if _, _, ok := PlainAnswer(b[:n]); ok && want {
				t.Errorf("%s is one after %d bytes of %d", types, n, len(b))
			}
		}
		if _, _, ok := PlainAnswer(append(bytes.Clone(b), 'D')); ok {
			t.Errorf("%s is one, and more comes", types)
		}
	}
	for _, b := range [][]byte{
		append(said("C"), ReadyForQuery, 0, 0, 0, 6, Idle, 0), append(said("C"), ReadyForQuery, 0, 0, 0, 4), append(said("C"), ReadyForQuery, 0, 0, 0, 5, InBlock),
		append([]byte{DataRow, 0, 0, 0, 3}, said("CI")...), append([]byte{DataRow, 0xff, 0xff, 0xff, 0xff}, said("CI")...),
	} {
		if _, _, ok := PlainAnswer(b); ok {
			t.Errorf("%q is one", b)
		}
	}
}

func FuzzPlainAnswer(f *testing.F) {
	f.Add(said("12tDDCI"))
	f.Add(said("CCI"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tag, parsed, ok := PlainAnswer(b)
		if !ok {
			return
		}
		commands, ends := 0, 0
		for at := 0; at < len(b); {
			typ, n, body := Split(b[at:])
			switch typ {
			case ErrorResponse, NoticeResponse, ParameterStatus, Notification, CopyIn, CopyBoth, CloseComplete, PortalSuspended, EmptyQuery:
				t.Fatalf("it has a %q", typ)
			case ParseComplete:
				if at > 0 || !parsed {
					t.Fatal("a ParseComplete that is not first, or not told")
				}
			case CommandComplete:
				if commands++; !bytes.Equal(body, tag) {
					t.Fatalf("%q, want %q", tag, body)
				}
			case ReadyForQuery:
				if ends++; at+n != len(b) || string(body) != "I" {
					t.Fatalf("it ends with %q", b[at:])
				}
			}
			at += n
		}
		if commands != 1 || ends != 1 {
			t.Fatalf("%d commands, %d ends", commands, ends)
		}
	})
}
