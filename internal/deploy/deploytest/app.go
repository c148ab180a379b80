// Package deploytest holds what the drivers of internal/deploy are tested with: an
// app that behaves and misbehaves as told, and the contract that every driver
// keeps. Only tests import it.
package deploytest

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
)

const appWord = "deploytest-app"

// App is the command that makes a test binary, whose TestMain calls
// [RunIfApp], behave as words say:
//
//	serve              answers every GET with its pid, color and PORT; ends on SIGTERM, saying bye
//	serve deaf         the same, but ignores SIGTERM
//	elsewhere          serves on a port of its own choice, not on PORT
//	silent             listens nowhere
//	exit N             writes a line and ends with code N
//	kill N             ends itself by signal N
//	parent WORDS…      starts itself with WORDS as a child and waits; dies of SIGTERM itself
//	write N            writes N numbered lines, then serves
//	junk               writes a line of 100 KB, binary bytes and an escape sequence, then serves
//	hog                takes memory until it is killed
//
// It serves on the address that LISTEN_HOST names; absent, on 127.0.0.1.
func App(words ...string) deploy.Command {
	return append(deploy.Command{os.Args[0], appWord}, words...)
}

// RunIfApp turns the process into the app if it was started as such.
func RunIfApp() {
	if len(os.Args) < 3 || os.Args[1] != appWord {
		return
	}
	if err := behave(os.Args[2:]); err != nil {
		fmt.Println("app:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func behave(words []string) error {
	number := func() int {
		n, _ := strconv.Atoi(words[len(words)-1])
		return n
	}
	switch words[0] {
	case "serve":
		return serve(onPort(), len(words) > 1)
	case "elsewhere":
		return serve("127.0.0.1:0", false)
	case "silent":
		time.Sleep(time.Hour)
	case "exit":
		fmt.Println("giving up")
		os.Exit(number())
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(number()))
		time.Sleep(time.Hour)
	case "parent":
		child := exec.Command(os.Args[0], append([]string{appWord}, words[1:]...)...)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		return child.Run()
	case "write":
		for i := range number() {
			fmt.Printf("line %d\n", i)
		}
		return serve(onPort(), false)
	case "junk":
		_, _ = os.Stdout.Write(bytes.Repeat([]byte("x"), 100<<10))
		_, _ = os.Stdout.Write([]byte("\n\xff\xfe\x00binary\x1b[31mred\x1b[0m\x07\r\n"))
		return serve(onPort(), false)
	case "hog":
		for kept := [][]byte{}; ; time.Sleep(time.Millisecond) {
			kept = append(kept, bytes.Repeat([]byte("x"), 1<<20))
		}
	}
	return fmt.Errorf("unknown behaviour %q", strings.Join(words, " "))
}

func onPort() string {
	host := os.Getenv("LISTEN_HOST")
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, os.Getenv("PORT"))
}

func serve(address string, deaf bool) error {
	term := make(chan os.Signal, 1)
	if deaf {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(term, syscall.SIGTERM)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%d %s %s", os.Getpid(), os.Getenv("COLOR"), os.Getenv("PORT"))
		}))
	}()
	fmt.Println("serving")
	<-term
	fmt.Println("bye")
	return nil
}
