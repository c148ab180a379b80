#!/bin/sh
# Puts this folder on a server on which Mainstay runs, over SSH, as a release of its
# own, and deploys it. It ends with the exit code of mainstay deploy: 0 settled,
# 1 failed before the switch, 3 rolled back, 4 frozen, 5 another deploy is frozen.
# In all of them the app serves on.
#
#   DEPLOY_HOST     user@host
#   DEPLOY_VERSION  what is deployed; absent: the commit
#   DEPLOY_COMMAND  what starts the app; absent: npm start
#   DEPLOY_BUILD    what is run in the release before; absent: npm ci
#   DEPLOY_CONFIG   Mainstay's file there; absent: /etc/mainstay/mainstay.yaml
#   DEPLOY_WHY      why, for the record
#   DEPLOY_SSH      what connects; absent: ssh
set -eu
host=${DEPLOY_HOST:?name the server: DEPLOY_HOST=user@host}
version=${DEPLOY_VERSION:-$(git rev-parse --short HEAD)}
case $version in
*[!A-Za-z0-9._-]* | "" | .*) echo "DEPLOY_VERSION must be letters, digits, dots and dashes, got $version" >&2; exit 2 ;;
esac
ssh=${DEPLOY_SSH:-ssh}

# quote makes one word for the shell over there.
quote() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }

tar -c --exclude ./.git . | $ssh "$host" "rm -rf releases/$version && mkdir -p releases/$version && tar -x -C releases/$version"
$ssh "$host" "cd releases/$version && ${DEPLOY_BUILD:-npm ci} && mainstay deploy -c $(quote "${DEPLOY_CONFIG:-/etc/mainstay/mainstay.yaml}") \
	--wait --version $version --why $(quote "${DEPLOY_WHY:-}") --dir \"\$PWD\" -- ${DEPLOY_COMMAND:-npm start}"
