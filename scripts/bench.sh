#!/usr/bin/env bash
# Whole exchanges through each plane, beside the bare alternative of the same run.
# Compare rows of one run with one another: the machine's mood is in all of them.
# COUNT (default 3) and BENCHTIME (default 2s) can be set.
set -euo pipefail
cd "$(dirname "$0")/.."
for pkg in ./edge ./claude ./pooler ./telemetry/...; do
	echo "== $pkg"
	go test -run '^$' -bench . -benchmem -count "${COUNT:-3}" -benchtime "${BENCHTIME:-2s}" "$pkg" | grep -Ev '^(PASS|ok|\?|goos|goarch|pkg)'
done
