#!/bin/sh
# Runs PostgreSQL's own regression suite directly and through the pooler, and prints the
# numbers and what fails. It takes some minutes; regress.md keeps the last result.
#
# pg_regress comes with Debian's postgresql-client-15. The suite comes with the source
# package, its C functions need the server's headers and a compiler: they are downloaded
# into a folder of their own (MAINSTAY_REGRESS, default below), nothing is installed.
# The outputs of each way are left there, under out/.
set -eu
cd "$(dirname "$0")/../.."
: "${MAINSTAY_REGRESS:=${TMPDIR:-/tmp}/mainstay-regress}"
export MAINSTAY_REGRESS
version=$(dpkg-query -W -f '${Version}' postgresql-15)
upstream=${version%%-*}

fetch() {
	mkdir -p "$MAINSTAY_REGRESS/lists" "$MAINSTAY_REGRESS/cache/archives/partial" "$MAINSTAY_REGRESS/lib"
	cd "$MAINSTAY_REGRESS"
	key=/usr/share/keyrings/debian-archive-keyring.gpg
	for part in debian/:bookworm debian-security/:bookworm-security; do
		echo "deb-src [signed-by=$key] http://deb.debian.org/${part%%/*} ${part##*:} main"
		echo "deb [signed-by=$key] http://deb.debian.org/${part%%/*} ${part##*:} main"
	done >sources.list
	apt="-o Dir::Etc::sourcelist=$PWD/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$PWD/lists -o Dir::Cache=$PWD/cache"
	# shellcheck disable=SC2086 # the options are words
	{
		apt-get $apt -q update
		apt-get $apt -q source --download-only "postgresql-15=$version"
		apt-get $apt -q download "postgresql-server-dev-15=$version"
	} >fetch.log 2>&1 || { tail -5 fetch.log >&2; exit 1; }
	tar xjf "postgresql-15_$upstream.orig.tar.bz2" "postgresql-$upstream/src/test/regress"
	rm -rf src && mv "postgresql-$upstream/src/test/regress" src
	dpkg -x postgresql-server-dev-15_*.deb dev
	cc -shared -fPIC -O2 -w -Idev/usr/include/postgresql/15/server src/regress.c -o lib/regress.so
	cp "$(pg_config --pkglibdir)/refint.so" "$(pg_config --pkglibdir)/autoinc.so" lib/
	echo "$version" >version
}

[ "$(cat "$MAINSTAY_REGRESS/version" 2>/dev/null)" = "$version" ] || (fetch)
exec go test -tags pgregress -run PostgreSQLsOwnSuite -v -count=1 -timeout 60m ./pooler
