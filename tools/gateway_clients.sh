#!/bin/sh
# The heavier programs that tools/gateway_clients.py runs: Debian packages as root, one Python wheel, one npm package.
set -eu
cd "$(dirname "$0")/.."
missing=""
command -v transmission-cli >/dev/null 2>&1 || missing="$missing transmission-cli"
command -v syncthing >/dev/null 2>&1 || missing="$missing syncthing"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
.venv/bin/python -c 'import libtorrent' 2>/dev/null || .venv/bin/pip install -q libtorrent
[ -d .venv/npm/node_modules/nat-pmp ] || npm install --silent --no-fund --no-audit --prefix .venv/npm nat-pmp
