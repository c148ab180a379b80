#!/usr/bin/env bash
# Installs what the demo (`setup.sh postgres`) or the tests (`setup.sh all`) need
# and this machine lacks. It says what it does, and what is missing where it may
# not install.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

missing=()
need() { # need PACKAGE TEST…: remember PACKAGE unless TEST succeeds
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

server() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || have initdb; }

have go || { echo "Go is missing: install Go 1.26 or later from https://go.dev/dl" >&2; exit 1; }
need postgresql server
if [ "${1:-all}" = all ]; then
	need gcc have gcc # the race detector is built with cgo
	need libc6-dev test -e /usr/include/stdlib.h
	need nodejs have node
	need npm have npm
	need chromium have chromium
	need redis-server have redis-server
	need docker.io have dockerd
	need iptables have iptables
	need iproute2 have ip
	need curl have curl
	need prometheus have promtool # checks the alerting rules; its server is not used
fi
newest() { if [ "$1" = all ]; then "$(dirname "$0")/postgres-newest.sh"; fi; }
if [ ${#missing[@]} -eq 0 ]; then
	newest "${1:-all}"
	exit 0
fi

if [ "$(id -u)" != 0 ] || ! have apt-get; then
	echo "Missing: ${missing[*]}. Install them (on Debian: sudo apt-get install ${missing[*]}) and run this again." >&2
	exit 1
fi
echo "Installing ${missing[*]} …"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# The server is started by Mainstay's own scripts; Debian's cluster is not wanted.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
log=$(mktemp)
if ! apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
	cat "$log" >&2
	echo "apt-get could not install ${missing[*]}; see above." >&2
	exit 1
fi
rm -f "$log"
newest "${1:-all}"
