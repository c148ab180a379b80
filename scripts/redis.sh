#!/usr/bin/env bash
# Runs a command beside a Redis of its own: redis.sh COMMAND… The command finds its
# address in REDIS_ADDR. The Redis keeps nothing and ends with the command.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 COMMAND…" >&2; exit 2; }
command -v redis-server >/dev/null || { echo "redis-server is missing: sudo apt-get install redis-server" >&2; exit 1; }

dir=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
for try in 1 2 3 4 5; do
	port=$((20000 + RANDOM % 10000))
	redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --dir "$dir" >"$dir/log" 2>&1 &
	server=$!
	for _ in $(seq 50); do
		kill -0 "$server" 2>/dev/null || break
		if redis-cli -p "$port" info server 2>/dev/null | grep -q "process_id:$server"; then
			REDIS_ADDR=127.0.0.1:$port "$@"
			exit
		fi
		sleep 0.1
	done
	kill "$server" 2>/dev/null || true
done
cat "$dir/log" >&2
exit 1
