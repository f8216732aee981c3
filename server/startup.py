"""What a start and a reload take from the configuration first: limits, guard, certificate, secrets."""

import os
import resource
import ssl
from typing import Final

import structlog

from server.config import DnsSettings
from server.cookies import Cookies, read_secrets
from server.guard import Guard
from server.metrics import Metrics
from server.response_limit import ResponseLimiter, ResponseLimits
from server.strangers import StrangerLimits, Strangers
from server.system import Clock, Entropy
from server.transport.stream import StreamLimits
from server.transport.tls import server_context
from server.work_budget import WorkBudget

log = structlog.get_logger(__name__)

SPARE_DESCRIPTORS: Final = 128  # for listeners, database, what else is open


class StartError(Exception):
    """The server cannot start; the text is one plain line for the operator."""


def raise_guard(
    guard: Guard, dns: DnsSettings, secrets: list[bytes], *, clock: Clock, entropy: Entropy, metrics: Metrics
) -> None:
    """Cookies and limits as configured; what goes on keeps its state."""
    for key, value in dns.limits().items():
        metrics.limits.labels(key).set(value)
    if not dns.cookies:
        guard.cookies = None
    elif guard.cookies is None:
        guard.cookies = Cookies(clock.unix, entropy.bits, secrets)
    else:
        guard.cookies.replace(secrets)
    if guard.work is None:
        guard.work = WorkBudget(dns.udp_slow_share, clock.monotonic)
    guard.work.share = dns.udp_slow_share
    strangers = StrangerLimits(dns.strangers_per_address, dns.strangers_total, dns.rate_limit_exempt)
    if guard.strangers is None:
        guard.strangers = Strangers(strangers, metrics)
    else:
        guard.strangers.replace(strangers)
    limits = ResponseLimits(
        dns.rate_limit,
        dns.rate_limit_total,
        dns.rate_limit_slip,
        dns.rate_limit_watch_seconds,
        dns.rate_limit_exempt,
    )
    if not dns.rate_limit:
        guard.limiter = None
    elif guard.limiter is None:
        guard.limiter = ResponseLimiter(limits, clock.monotonic, metrics)
    else:
        guard.limiter.replace(limits)


def stream_limits(dns: DnsSettings) -> StreamLimits:
    return StreamLimits(
        idle_seconds=dns.tcp_idle_seconds,
        connections=dns.tcp_connections,
        per_address=dns.tcp_connections_per_address,
        handshake_seconds=dns.tls_handshake_seconds,
        read_seconds=dns.tcp_read_seconds,
        handshakes_per_second=dns.tls_handshakes_per_second,
    )


def make_room_for_descriptors(connections: int) -> None:
    """Let the process open what the connections may need, as far as the system lets it."""
    wanted = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted < wanted:
        log.warning("the system allows fewer connections than configured", open_files=granted, wanted=wanted)


def read_tls_context(dns: DnsSettings) -> ssl.SSLContext | None:
    """The certificate, ready for use; None without TLS listeners, `StartError` when it is no good."""
    if not dns.listen_tls:
        return None
    assert dns.certificate_file and dns.key_file
    try:
        return server_context(dns.certificate_file, dns.key_file)
    except ValueError as error:
        raise StartError(str(error)) from None


def read_cookie_secrets(dns: DnsSettings) -> list[bytes]:
    """The shared secrets of the configuration, none when there are none; `StartError` when the file is no good."""
    if dns.cookie_secret_file is None or not dns.cookies:
        return []
    try:
        return read_secrets(dns.cookie_secret_file)
    except OSError as error:
        raise StartError(f"cannot read {dns.cookie_secret_file}: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"cookie secrets in {dns.cookie_secret_file}: {error}") from None


def plain(error: OSError) -> str:
    """Why in the system's own words; event loops word it each in their own way, uvloop's UDP only in the cause."""
    known = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return os.strerror(known.errno) if known.errno else str(error)
