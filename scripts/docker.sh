#!/bin/sh
# A Docker Engine of one's own for tests, beside any other on the machine.
#
#   scripts/docker.sh start DIR [dockerd flags]   prints the socket, as unix://…
#   scripts/docker.sh stop DIR                    ends it and removes what it made
#
# It needs root, dockerd (Debian: apt-get install docker.io) and ip (iproute2).
# DIR must be short, since a socket's path may have 107 bytes.
set -eu

verb=${1:-} dir=${2:-}
if [ -z "$dir" ] || { [ "$verb" != start ] && [ "$verb" != stop ]; }; then
	sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
	exit 2
fi
shift 2
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

say() { echo "docker.sh: $*" >&2; }

# The first of sixteen names whose bridge does not exist yet is ours. Making the
# bridge is what claims it, so two that start at once never share one.
claim_bridge() {
	[ ! -f "$dir/bridge" ] || return 0 # started again, with the containers it had
	for n in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
		if ip link add "mstest$n" type bridge 2>/dev/null; then
			echo "mstest$n" >"$dir/bridge"
			# 198.18.0.0/15 is for tests (RFC 2544): no real network has it.
			ip addr add "198.18.$n.1/24" dev "mstest$n"
			ip link set "mstest$n" up
			return
		fi
	done
	say "no bridge could be made: is this root with CAP_NET_ADMIN, or are sixteen left over (ip link show type bridge)?"
	exit 1
}

start() {
	for program in dockerd ip; do
		command -v $program >/dev/null || { say "there is no $program here; try apt-get install docker.io iproute2"; exit 1; }
	done
	[ "$(id -u)" = 0 ] || { say "dockerd must be started as root"; exit 1; }
	claim_bridge
	# --iptables=false, --ip6tables=false, --ip-forward=false: the rules and the
	#   setting belong to the whole machine. Ports are published by docker-proxy
	#   alone, which needs neither; containers cannot reach the internet, and no
	#   test wants to.
	echo "{}" >"$dir/daemon.json"
	# --bridge: docker0 may be another Engine's.
	# --config-file: /etc/docker/daemon.json is about another Engine.
	# --shutdown-timeout: whatever a failed test left running needs no grace.
	setsid dockerd --host "unix://$dir/d.sock" \
		--data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
		--config-file "$dir/daemon.json" --bridge "$(cat "$dir/bridge")" \
		--iptables=false --ip6tables=false --ip-forward=false \
		--shutdown-timeout 1 "$@" >"$dir/log" 2>&1 </dev/null &
	pid=$!
	i=0
	until curl -fs --unix-socket "$dir/d.sock" http://d/_ping >/dev/null 2>&1; do
		i=$((i + 1))
		if [ $i -gt 300 ] || ! kill -0 $pid 2>/dev/null; then
			say "dockerd did not come up; its log ends so:"
			tail -5 "$dir/log" >&2
			stop
			exit 1
		fi
		sleep 0.1
	done
	echo "unix://$dir/d.sock"
}

stop() {
	if [ -f "$dir/pid" ]; then
		pid=$(cat "$dir/pid")
		kill "$pid" 2>/dev/null || true
		i=0
		while kill -0 "$pid" 2>/dev/null && [ $i -lt 200 ]; do
			i=$((i + 1))
			sleep 0.1
		done
		kill -9 "$pid" 2>/dev/null || true
	fi
	if [ -f "$dir/bridge" ]; then
		ip link del "$(cat "$dir/bridge")" 2>/dev/null || true
	fi
	# What was mounted below must be unmounted first: rm would empty it.
	awk -v d="$dir/" 'index($2, d) == 1 { print $2 }' /proc/mounts | sort -r | while read -r m; do umount "$m"; done
	rm -rf "$dir/data" "$dir/exec" "$dir/d.sock" "$dir/pid" "$dir/bridge" "$dir/log" "$dir/daemon.json"
}

"$verb" "$@"
