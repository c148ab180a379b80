package app

import (
	"context"
	"errors"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/pooler"
)

// databases is the pooler in admin's words; nil if it is off.
func (a *App) databases() admin.Databases {
	if a.pooler == nil {
		return nil
	}
	return databases{a.pooler}
}

type databases struct{ *pooler.Server }

const topRows = 50 // of queries, and of users

func (d databases) Look(what string) (any, bool) {
	switch what {
	case "pools":
		return d.Stats(), true
	case "clients":
		return d.Clients(), true
	case "top":
		return d.Top(topRows), true
	}
	return nil, false
}

func (d databases) Pause(ctx context.Context, database string) error {
	return known(d.Server.Pause(ctx, database))
}

func (d databases) Resume(database string) error    { return known(d.Server.Resume(database)) }
func (d databases) Reconnect(database string) error { return known(d.Server.Reconnect(database)) }

func (d databases) Kill(o admin.DBOrder) (int, error) {
	n, err := d.Server.Kill(pooler.Kill{ID: o.ID, User: o.User, Database: o.Database, Why: o.Why})
	return n, known(err)
}

// known translates the pooler's word for what is not there.
func known(err error) error {
	if errors.Is(err, pooler.ErrUnknown) {
		return noSuch{err}
	}
	return err
}

// noSuch says what err says, and is admin.ErrNoSuch.
type noSuch struct{ error }

func (noSuch) Is(target error) bool { return target == admin.ErrNoSuch }
