"""What a running server takes over from a configuration that was read again, and what only a restart brings."""

from typing import Final

from server.config import ServerSettings

_LIVE: Final[dict[str, frozenset[str] | None]] = {  # None: the whole table
    "policy": None,
    "transfer": frozenset({"allow_keys", "allow_addresses", "also_notify", "xot_only", "notify_key", "zones"}),
    "dns": frozenset(
        {
            "certificate_file",
            "key_file",
            "cookies",
            "cookie_secret_file",
            "rate_limit",
            "rate_limit_total",
            "rate_limit_slip",
            "rate_limit_watch_seconds",
            "rate_limit_exempt",
            "strangers_per_address",
            "strangers_total",
            "udp_slow_share",
            "tcp_idle_seconds",
            "tcp_read_seconds",
            "tcp_connections",
            "tcp_connections_per_address",
            "tls_handshake_seconds",
            "tls_handshakes_per_second",
        }
    ),
}


def merge(running: ServerSettings, read: ServerSettings) -> tuple[ServerSettings, list[str]]:
    """(what is in effect from now on, `[table] key` of each difference that waits for a restart)."""
    tables = {}
    waiting: list[str] = []
    for table in ServerSettings.model_fields:
        old, new = getattr(running, table), getattr(read, table)
        live = _LIVE.get(table, frozenset())
        if live is None:
            tables[table] = new
            continue
        fields = type(old).model_fields
        tables[table] = old.model_copy(update={name: getattr(new, name) for name in fields if name in live})
        waiting += [
            f"[{table}] {name}" for name in fields if name not in live and getattr(old, name) != getattr(new, name)
        ]
    return running.model_copy(update=tables), waiting
