// Command testapp is the app of the end-to-end tests: an HTTP server that queries
// PostgreSQL and calls Claude, instrumented the way OpenTelemetry's own packages
// do it and in no other. It knows nothing of Mainstay but the variables that any
// app reads: PORT, DATABASE_URL, ANTHROPIC_BASE_URL and the OTEL_ ones.
package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	_ "github.com/jackc/pgx/v5/stdlib" // the pgx driver
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	flush, err := trace(ctx)
	if err != nil {
		return err
	}
	defer flush()
	a := &app{version: os.Getenv("VERSION"), desks: make(chan struct{}, 8)}
	if err := a.hurt.begin(); err != nil {
		return err
	}
	if dsn := os.Getenv("DATABASE_URL"); dsn != "" {
		a.db, err = otelsql.Open("pgx", dsn, otelsql.WithSQLCommenter(true))
		if err != nil {
			return err
		}
		a.db.SetMaxOpenConns(10)
		defer func() { _ = a.db.Close() }()
	}
	a.claude = anthropic.NewClient(option.WithMaxRetries(0), option.WithHTTPClient(&http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport)}))

	mux := http.NewServeMux()
	mux.HandleFunc("/api/health", a.health)
	mux.HandleFunc("/version", a.whichVersion)
	mux.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getenv(r.URL.Query().Get("name"))) })
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get(r.URL.Query().Get("name"))) })
	mux.HandleFunc("/page", a.page)
	mux.HandleFunc("/pid", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/slow", a.slow)
	mux.HandleFunc("/upload", upload)
	mux.HandleFunc("/crowd", a.crowd)
	mux.HandleFunc("/query", a.query)
	mux.HandleFunc("/ask", a.ask)
	mux.HandleFunc("/work", a.hurt.work)
	mux.HandleFunc("/wait", a.hurt.wait)
	mux.HandleFunc("/hurt", a.hurt.change)
	srv := &http.Server{Addr: net.JoinHostPort(cmp.Or(os.Getenv("HOST"), "127.0.0.1"), os.Getenv("PORT")), Handler: otelhttp.NewHandler(a.hurt.before(mux), "testapp"), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.ListenAndServe() }()
	log.Printf("testapp %s listens on %s", a.version, srv.Addr)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Shutdown(sctx)
}

// trace sets up the SDK from the OTEL_ variables, if a collector is named.
func trace(ctx context.Context) (flush func(), err error) {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return func() {}, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, err
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(100*time.Millisecond)))
	otel.SetTracerProvider(p)
	return func() { _ = p.Shutdown(context.Background()) }, nil
}

type app struct {
	version string
	db      *sql.DB
	hurt    hurt
	desks   chan struct{}
	claude  anthropic.Client
	pages   atomic.Int64
}

func (a *app) health(w http.ResponseWriter, r *http.Request) {
	if a.db != nil {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		var one int
		if err := a.db.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprint(w, "ok")
}

func (a *app) whichVersion(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, a.version) }

// page may be kept as ?cache says; each answer is another.
func (a *app) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", r.URL.Query().Get("cache"))
	w.Header().Set("ETag", `"page"`)
	fmt.Fprintf(w, "page %d of %s", a.pages.Add(1), a.version)
}

// slow sends its answer in parts over the time that ?ms asks for.
func (a *app) slow(w http.ResponseWriter, r *http.Request) {
	ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
	for range 4 {
		fmt.Fprint(w, "part ")
		_ = http.NewResponseController(w).Flush()
		time.Sleep(time.Duration(ms) * time.Millisecond / 4)
	}
	fmt.Fprint(w, a.version)
}

// crowd takes 20 ms for a request, and eight requests at a time: the others wait.
func (a *app) crowd(w http.ResponseWriter, r *http.Request) {
	select {
	case a.desks <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	defer func() { <-a.desks }()
	time.Sleep(20 * time.Millisecond)
	fmt.Fprint(w, "served")
}

func upload(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprint(w, n)
}

func (a *app) query(w http.ResponseWriter, r *http.Request) {
	var user, name string
	if err := a.db.QueryRowContext(r.Context(), "SELECT current_user, $1::text", "app").Scan(&user, &name); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprint(w, user)
}

// ask calls Claude, in the name of whoever the edge says asks.
func (a *app) ask(w http.ResponseWriter, r *http.Request) {
	var opts []option.RequestOption
	if who := r.Header.Get("Mainstay-Identity"); who != "" {
		opts = append(opts, option.WithHeader("Mainstay-Identity", who))
	}
	msg, err := a.claude.Messages.New(r.Context(), anthropic.MessageNewParams{
		Model: "claude-sonnet-4-5", MaxTokens: 64,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hello"))},
	}, opts...)
	if err != nil {
		status := http.StatusBadGateway
		if ae, ok := errors.AsType[*anthropic.Error](err); ok {
			status = ae.StatusCode
		}
		http.Error(w, err.Error(), status)
		return
	}
	fmt.Fprint(w, msg.Content[0].Text)
}
