#!/bin/sh
# The servers that bench/ compares us with. Installed from Debian packages as root, without starting their services.
set -eu
missing=""
PATH=$PATH:/usr/sbin
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need named bind9
need knotd knot
need nsd nsd
need dnsperf dnsperf
need pdns_server "pdns-server pdns-backend-sqlite3"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # shellcheck disable=SC2086
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "not installed (apt-get install$missing); their columns stay empty" >&2
fi
