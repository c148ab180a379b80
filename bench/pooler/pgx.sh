#!/bin/sh
# Runs the tests of pgx itself directly and through the pooler, and prints the numbers
# and what fails. It takes some minutes; pgx.md keeps the last result.
set -eu
cd "$(dirname "$0")/../.."
exec go test -tags pgxsuite -run PgxsOwnSuite -v -count=1 -timeout 30m ./pooler
