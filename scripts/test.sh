#!/usr/bin/env bash
# All tests, with the race detector. The packages that start real servers share
# two cores, so they do not run beside one another.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "== unit and component tests"
go test -race -timeout 12m ./...

echo "== the example app, a module of its own"
(cd examples/unitehub && go test -race -timeout 5m ./...)
