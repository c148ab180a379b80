#!/usr/bin/env bash
# All tests, with the race detector. The packages that start real servers share
# two cores, so no more than two run beside one another. The example app is a module
# of its own; internal/demo runs its tests on a PostgreSQL.
set -euo pipefail
cd "$(dirname "$0")/.."

go test -race -timeout 12m ./...
