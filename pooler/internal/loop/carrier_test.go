//go:build linux

package loop

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// certificate is one that nobody has signed.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A tap is a connection that keeps what is written.
type tap struct {
	net.Conn
	kept bytes.Buffer
	on   bool
}

func (c *tap) Write(p []byte) (int, error) {
	if c.on {
		return c.kept.Write(p)
	}
	return c.Conn.Write(p)
}

// encrypted is a pair of connections with TLS, the first over a carrier, the second over
// a tap.
func encrypted(t *testing.T, version uint16) (ours *tls.Conn, carrier *Carrier, theirs *tls.Conn, wire *tap) {
	t.Helper()
	sock, conn := pair(t, start(t), "tcp", "127.0.0.1:0")
	carrier, wire = NewCarrier(sock, sock, nil), &tap{Conn: conn}
	ours = tls.Server(carrier, &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MaxVersion: version})
	theirs = tls.Client(wire, &tls.Config{InsecureSkipVerify: true}) // it is ours
	ended := make(chan error, 1)
	go func() { ended <- theirs.Handshake() }()
	if err := ours.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := inTime(t, "the handshake", ended); err != nil {
		t.Fatal(err)
	}
	return ours, carrier, theirs, wire
}

func TestTLSGoesOnAfterEveryByteThatIsLate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		ours, carrier, theirs, wire := encrypted(t, version)
		carrier.Hurry()
		buf := make([]byte, 100)
		if n, err := ours.Read(buf); n != 0 || !Waits(err) {
			t.Fatalf("nothing has come: %d, %v", n, err)
		}
		wire.on = true
		const text = "one record, byte by byte"
		if _, err := io.WriteString(theirs, text); err != nil {
			t.Fatal(err)
		}
		record := wire.kept.Bytes()
		for i := range record {
			if _, err := wire.Conn.Write(record[i : i+1]); err != nil {
				t.Fatal(err)
			}
			// The byte may come late, so that this is only a chance to go wrong.
			if i == len(record)-1 {
				break
			}
			if n, err := ours.Read(buf); n != 0 || !Waits(err) {
				t.Fatalf("after %d bytes of %d: %d, %v", i+1, len(record), n, err)
			}
		}
		carrier.Rest()
		if n, err := ours.Read(buf); err != nil || string(buf[:n]) != text {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
}

func TestWhatThereIsNoRoomForIsWrittenLater(t *testing.T) {
	ours, carrier, theirs, _ := encrypted(t, tls.VersionTLS13)
	carrier.Hurry()
	sent := 0
	part := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	for !carrier.Behind() {
		n, err := ours.Write(part)
		if n != len(part) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		sent += n
	}
	n, err := ours.Write(part) // behind what is kept
	if sent += n; err != nil {
		t.Fatal(err)
	}
	carrier.Rest()
	received, whole := make(chan []byte, 1), int64(sent+len(part))
	go func() {
		all, _ := io.ReadAll(io.LimitReader(theirs, whole)) // a failure is too little
		received <- all
	}()
	if err := carrier.Flush(); err != nil || carrier.Behind() {
		t.Fatal(err)
	}
	if n, err = ours.Write(part); err != nil {
		t.Fatal(err)
	}
	sent += n
	all := inTime(t, "all of it", received)
	if len(all) != sent || !bytes.Equal(all, bytes.Repeat(part, sent/len(part))) {
		t.Errorf("%d bytes of %d came", len(all), sent)
	}
}

func TestWhatWasReadBeforeComesFirst(t *testing.T) {
	sock, theirs := pair(t, start(t), "tcp", "127.0.0.1:0")
	c := NewCarrier(sock, sock, []byte("first "))
	if _, err := io.WriteString(theirs, "second"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("first second"))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "first second" {
		t.Errorf("%q, %v", got, err)
	}
}
