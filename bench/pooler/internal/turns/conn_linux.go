package turns

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a subject may let everybody wait before it counts as hung.
const patience = 20 * time.Second

// again is what a socket says that has nothing to read. crypto/tls keeps what it has of
// a record, and can be asked once more, because it is temporary.
type again struct{}

func (again) Error() string   { return "nothing to read" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

var errAgain error = again{}

// A socket is a net.Conn, as far as crypto/tls needs one, of the kernel alone: the
// runtime's poller does not know of it.
type socket struct{ fd int }

func (s socket) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, errAgain
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Write takes all of b at once: a question is less than any socket's buffer, and is
// asked when the last one is answered.
func (s socket) Write(b []byte) (int, error) {
	n, err := unix.Write(s.fd, b)
	if err != nil {
		return 0, os.NewSyscallError("write", err)
	}
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func (s socket) Close() error                   { return unix.Close(s.fd) }
func (socket) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (socket) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (socket) SetDeadline(time.Time) error      { return nil }
func (socket) SetReadDeadline(time.Time) error  { return nil }
func (socket) SetWriteDeadline(time.Time) error { return nil }

// A client is one connection and the transaction that it is in.
type client struct {
	socket
	stream io.ReadWriter // the socket, or TLS on it
	tls    bool
	busy   bool
	due    time.Duration // of its transaction
	answer answer
	rest   []byte // of a message that has not come to its end
}

// dial connects, logs in and prepares what the plan needs prepared. Until that is done
// the socket blocks.
func dial(port int, p Plan, w *writer) (c *client, agreed string, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", os.NewSyscallError("socket", err)
	}
	c = &client{socket: socket{fd}}
	c.stream = c.socket
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
	)
	if err == nil && p.TLS {
		agreed, err = c.encrypt()
	}
	if err == nil {
		err = c.exchange(w.startup(), c.login)
	}
	if err == nil && p.Protocol == "prepared" {
		err = c.exchange(w.prepare(), c.answer.take)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	return c, agreed, nil
}

// encrypt asks for TLS; whose certificate it is does not matter here.
func (c *client) encrypt() (agreed string, err error) {
	request := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877103)
	if _, err := c.stream.Write(request); err != nil {
		return "", err
	}
	var reply [1]byte
	if _, err := io.ReadFull(c.stream, reply[:]); err != nil {
		return "", err
	}
	if reply[0] != 'S' {
		return "", fmt.Errorf("TLS is refused with %q", reply)
	}
	secure := tls.Client(c.socket, &tls.Config{InsecureSkipVerify: true}) // a test's certificate
	if err := secure.Handshake(); err != nil {
		return "", err
	}
	c.stream, c.tls = secure, true
	state := secure.ConnectionState()
	return tls.VersionName(state.Version) + ", " + tls.CipherSuiteName(state.CipherSuite), nil
}

// exchange writes a question and takes what comes until take calls it the last.
func (c *client) exchange(question []byte, take func(message) (bool, error)) error {
	if _, err := c.stream.Write(question); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	var have []byte
	for {
		n, err := c.stream.Read(buf)
		if err != nil {
			return err
		}
		have = append(have, buf[:n]...)
		for {
			m, rest, whole, err := next(have)
			if err != nil {
				return err
			}
			if !whole {
				break
			}
			have = rest
			if last, err := take(m); last || err != nil {
				return err
			}
		}
	}
}

// login takes what comes before the first ReadyForQuery.
func (c *client) login(m message) (last bool, err error) {
	switch m.kind {
	case 'R':
		if len(m.body) < 4 || binary.BigEndian.Uint32(m.body) != 0 {
			return false, errors.New("a password is asked for, where the load has none")
		}
		return false, nil
	case 'K': // the key for cancels
		return false, nil
	}
	return c.answer.take(m)
}
