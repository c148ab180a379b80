// Unitehub is a small CRM as many teams first ship it: it works, and it does
// nothing about what goes wrong. Each request opens its own database connection,
// nothing is retried, nothing is limited, nothing may be cached.
//
//	unitehub migrate   create the tables
//	unitehub seed      fill an empty database with example data
//	unitehub           serve on PORT (default 3000) of HOST (default: all addresses)
//
// It reads DATABASE_URL, ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schemaSQL string

//go:embed seed.sql
var seedSQL string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string) error {
	database := os.Getenv("DATABASE_URL")
	if database == "" {
		return errors.New("DATABASE_URL is not set; try DATABASE_URL=postgres://localhost/unitehub")
	}
	if len(args) == 0 {
		return serve(ctx, database)
	}
	switch args[0] {
	case "migrate":
		return migrate(ctx, database)
	case "seed":
		return seed(ctx, database)
	}
	return fmt.Errorf("unknown command %q; use migrate, seed, or none to serve", args[0])
}

func serve(ctx context.Context, database string) error {
	a := &app{
		database: database,
		claude:   anthropic.NewClient(option.WithMaxRetries(0)),
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "3000"
	}
	srv := &http.Server{Addr: net.JoinHostPort(os.Getenv("HOST"), port), Handler: a.routes()}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	log.Printf("unitehub listens on %s", srv.Addr)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Printf("unitehub stops")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

func migrate(ctx context.Context, database string) error {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, schemaSQL); err != nil {
		return fmt.Errorf("create the tables: %w", err)
	}
	return nil
}

// seed fills an empty database and leaves any other alone.
func seed(ctx context.Context, database string) error {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var full bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM workspaces)`).Scan(&full); err != nil {
		return fmt.Errorf("look for data (was `unitehub migrate` run?): %w", err)
	}
	if full {
		log.Printf("the database holds data already; nothing was added")
		return nil
	}
	if _, err := conn.Exec(ctx, seedSQL); err != nil {
		return fmt.Errorf("add the example data: %w", err)
	}
	return nil
}
