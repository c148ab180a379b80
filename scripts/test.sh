#!/usr/bin/env bash
# All tests, with the race detector. The packages that start real servers share
# two cores, so no more than two run beside one another. The example app is a module
# of its own; internal/demo runs its tests on a PostgreSQL.
set -euo pipefail
cd "$(dirname "$0")/.."

# A binary that a test builds needs no profile, and all that it is made of would be
# compiled once more for it.
export GOFLAGS="${GOFLAGS:-} -pgo=off"

go test -race -timeout 12m ./...

# The race detector allocates by itself: tests that count allocations skip under it
# in these packages, so they are run once more without, and texts to be read are shorter under it.
go test ./identity ./telemetry/jsonlog ./pooler/internal/scan
go test -run AllocatesNothing ./pooler
