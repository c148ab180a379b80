package pgwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Codes in place of a protocol version in a connection's first packet.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSSEnc = 80877104
)

// MaxStartup bounds a connection's first packet, as PostgreSQL does.
const MaxStartup = 10000

// A Startup is a connection's first packet.
type Startup struct {
	Kind       StartupKind
	Minor      uint16  // StartSession: the protocol's minor version, 3.Minor
	Parameters []Param // StartSession: in the client's order
	PID        uint32  // StartCancel
	Key        []byte  // StartCancel: 4 bytes, up to 256 with protocol 3.2; a copy
}

// StartupKind says what a first packet asks for.
type StartupKind uint8

const (
	StartSession StartupKind = iota
	StartTLS
	StartGSS
	StartCancel
)

// A Param is a run-time setting: of a startup packet, or of ParameterStatus.
type Param struct{ Name, Value string }

// Get returns the parameter's value, "" if it was not given. The last one counts.
func (s *Startup) Get(name string) string {
	for _, v := range slices.Backward(s.Parameters) {
		if v.Name == name {
			return v.Value
		}
	}
	return ""
}

// ErrVersion means a protocol that is not version 3.
var ErrVersion = errors.New("unsupported frontend protocol")

// ReadStartup waits for a connection's first packet and consumes it, leaving what
// follows it in the buffer.
func (r *Reader) ReadStartup() (Startup, error) {
	packet, err := r.startupPacket()
	if err != nil {
		return Startup{}, err
	}
	return ParseStartup(packet)
}

// PeekStartup parses the first packet without waiting for it or consuming it; size is
// its length. ok is false if it is not there whole, or is none.
func (r *Reader) PeekStartup() (start Startup, size int, ok bool) {
	b := r.buf[r.pos:r.end]
	if len(b) < 8 {
		return start, 0, false
	}
	n := binary.BigEndian.Uint32(b)
	if n < 8 || n > MaxStartup || int(n) > len(b) {
		return start, 0, false
	}
	start, err := ParseStartup(b[4:n])
	return start, int(n), err == nil
}

// startupPacket returns the packet without its length.
func (r *Reader) startupPacket() ([]byte, error) {
	for {
		b := r.buf[r.pos:r.end]
		if len(b) >= 4 {
			n := binary.BigEndian.Uint32(b)
			if n < 8 || n > MaxStartup || int(n) > len(r.buf) {
				return nil, fmt.Errorf("invalid length %d of startup packet", n)
			}
			if len(b) >= int(n) {
				r.Skip(int(n))
				return b[4:n], nil
			}
		}
		if err := r.Fill(); err != nil {
			return nil, err
		}
	}
}

// ParseStartup decodes a first packet without its length.
func ParseStartup(packet []byte) (Startup, error) {
	if len(packet) < 4 {
		return Startup{}, errors.New("startup packet without a version")
	}
	code, body := binary.BigEndian.Uint32(packet), packet[4:]
	switch {
	case code == codeSSL:
		return Startup{Kind: StartTLS}, nil
	case code == codeGSSEnc:
		return Startup{Kind: StartGSS}, nil
	case code == codeCancel:
		if len(body) < 8 || len(body) > 4+256 {
			return Startup{}, errors.New("invalid length of cancel request")
		}
		return Startup{
			Kind: StartCancel, PID: binary.BigEndian.Uint32(body), Key: append([]byte(nil), body[4:]...),
		}, nil
	case code>>16 != 3:
		return Startup{}, fmt.Errorf("%w %d.%d: server supports 3.0", ErrVersion, code>>16, code&0xffff)
	}
	params, err := parseParameters(string(body))
	return Startup{Kind: StartSession, Minor: uint16(code), Parameters: params}, err
}

func parseParameters(body string) (params []Param, err error) {
	for {
		name, rest, ok := strings.Cut(body, "\x00")
		if !ok {
			return nil, errors.New("invalid startup packet layout: expected terminator as last byte")
		}
		if name == "" {
			if rest != "" {
				return nil, errors.New("invalid startup packet layout: bytes after the terminator")
			}
			return params, nil
		}
		value, rest, ok := strings.Cut(rest, "\x00")
		if !ok {
			return nil, fmt.Errorf("invalid startup packet layout: parameter %q has no value", name)
		}
		params = append(params, Param{name, value})
		body = rest
	}
}

// AppendStartup appends a StartupMessage of protocol 3.0.
func AppendStartup(b []byte, params []Param) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 3<<16)
	for _, p := range params {
		b = append(append(b, p.Name...), 0)
		b = append(append(b, p.Value...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

// AppendTLSRequest appends an SSLRequest.
func AppendTLSRequest(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint32(b, codeSSL)
}

// AppendCancel appends a CancelRequest.
func AppendCancel(b []byte, pid uint32, key []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(12+len(key)))
	b = binary.BigEndian.AppendUint32(b, codeCancel)
	b = binary.BigEndian.AppendUint32(b, pid)
	return append(b, key...)
}

// AppendNegotiate appends a NegotiateProtocolVersion: 3.minor it is, and the protocol
// options (parameters that begin with _pq_.) are unknown here.
func AppendNegotiate(b []byte, minor uint16, options []string) []byte {
	n := 8
	for _, o := range options {
		n += len(o) + 1
	}
	b = AppendHeader(b, NegotiateProto, n)
	b = binary.BigEndian.AppendUint32(b, 3<<16|uint32(minor))
	b = binary.BigEndian.AppendUint32(b, uint32(len(options)))
	for _, o := range options {
		b = append(append(b, o...), 0)
	}
	return b
}
