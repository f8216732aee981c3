#!/bin/sh
# The foreign programs that the tests run against us. As root on Debian they are installed;
# elsewhere the tests that need a missing one skip with a reason (under CI they fail).
set -eu
missing=""
PATH=$PATH:/usr/sbin
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need dig bind9-dnsutils
need nsupdate bind9-dnsutils
need kdig knot-dnsutils
need knsupdate knot-dnsutils
need natpmpc natpmpc
need miniupnpd miniupnpd-nftables
need upnpc miniupnpc
need tcpdump tcpdump
need dnsmasq dnsmasq-base
need kea-dhcp4 kea-dhcp4-server
need kea-dhcp-ddns kea-dhcp-ddns-server
need ddclient ddclient
need busybox busybox
need systemd-analyze systemd
need dnsperf dnsperf
need named bind9
need knotd knot
need nsd nsd
need ip iproute2
need nft nftables
[ -n "$(find /usr/lib/postgresql -name initdb -print -quit 2>/dev/null)" ] || missing="$missing postgresql"
# The gateway loads this one into its own process.
[ -n "$(find /usr/lib /usr/local/lib -name 'libnftables.so.1' -print -quit 2>/dev/null)" ] || missing="$missing libnftables1"
# certbot's plugin brings its own dependencies: into an environment apart, which goes with .venv.
if [ -x .venv/bin/python ] && [ ! -d .venv/certbot ]; then
    .venv/bin/python -m venv .venv/certbot &&
        .venv/certbot/bin/python -m pip install --quiet --disable-pip-version-check certbot-dns-rfc2136==5.8.0 || {
        rm -rf .venv/certbot
        echo "certbot-dns-rfc2136 not installed; the test that needs it will skip" >&2
    }
fi
[ -z "$missing" ] && exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # RUNLEVEL=1: the servers among them are installed, not started.
    # shellcheck disable=SC2086
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "test peers not installed (apt-get install $missing); tests that need them will skip" >&2
fi
