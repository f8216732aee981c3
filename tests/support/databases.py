"""What a server's SQLite database holds, and what would be hard to bring about otherwise."""

import sqlite3
from collections.abc import Callable

from server.zone.model import StoredRR
from server.zone.node import check_node, encode_node, node_from_records


def records_in(connection: sqlite3.Connection) -> list[StoredRR]:
    """The records of all zones."""
    rows = connection.execute("SELECT owner, data FROM node").fetchall()
    return [record for row in rows for record in check_node(*row).decode().records()]


def edit_leases(connection: sqlite3.Connection, end_of: Callable[[StoredRR], int | None]) -> None:
    """Let the lease of each record end at another moment, None for never."""
    for owner, data in connection.execute("SELECT owner, data FROM node").fetchall():
        node = check_node(owner, data).decode()
        moved = node_from_records(record._replace(expires_at=end_of(record)) for record in node.records())
        connection.execute("UPDATE node SET data = ? WHERE data = ? AND owner = ?", (encode_node(moved), data, owner))
