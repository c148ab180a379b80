#!/usr/bin/env bash
# Writes cmd/mainstay/default.pgo, by which the compiler knows what is called most: the
# planes' own benches, with processor profiles (https://go.dev/doc/pgo). Run it on a quiet
# machine when a plane's hot path has changed much. A profile that is old does no harm.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go run ./bench/pooler -only cpu -rounds 30 -profile "$dir"
go run ./bench/pooler -only tls -rounds 20 -profile "$dir"
go run ./bench/claude -only stream -rounds 40 -profile "$dir"
go run ./bench/claude -only json -rounds 20 -profile "$dir"
go test ./edge -run '^$' -bench . -benchtime 2s -cpuprofile "$dir/edge.pprof" -o "$dir/edge.test" >/dev/null
rm -f "$dir"/{upstream,plain}.pprof
go tool pprof -proto "$dir"/*.pprof >cmd/mainstay/default.pgo
ls -l cmd/mainstay/default.pgo
