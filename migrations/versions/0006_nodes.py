"""One row an owner name in the place of one a record, with who renewed its leases last.

The octets are version 1 of what server/zone/node.py describes. They are written out here, for that version stays.
"""

import struct
from collections.abc import Iterator
from hashlib import sha256
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

from protocol.rdata import canonical

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_PAGE = 20_000  # rows in memory at a time
_RRSET = struct.Struct("!HIH")
_RR = struct.Struct("!IH")
_RECORD = ("zone_id", "owner_key", "owner", "rtype", "ttl", "rdata", "expires_at")
_NODE = ("zone_id", "owner_key", "owner", "data")


def upgrade() -> None:
    op.create_table(
        "node",
        sa.Column("zone_id", _ID, autoincrement=False, nullable=False),
        sa.Column("owner_key", sa.LargeBinary, nullable=False),
        sa.Column("owner", sa.LargeBinary, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("renewed_at", sa.BigInteger),
        sa.Column("renewed_key", sa.Text),
        sa.Column("renewed_peer", sa.Text),
        sa.PrimaryKeyConstraint("zone_id", "owner_key", name="pk_node"),
        sa.ForeignKeyConstraint(["zone_id"], ["zone.id"], name="fk_node_zone_id_zone", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    put = sa.text("INSERT INTO node (zone_id, owner_key, owner, data) VALUES (:zone_id, :owner_key, :owner, :data)")
    for rows in _pages("record", _RECORD, "owner_key, rtype, rdata_key"):
        names = [list(records) for _, records in groupby(rows, key=lambda row: row[:2])]
        nodes = [dict(zip(_NODE, (*records[0][:3], _packed(records)), strict=True)) for records in names]
        op.get_bind().execute(put, nodes)
    op.drop_table("record")


def downgrade() -> None:
    op.create_table(
        "record",
        sa.Column("zone_id", _ID, autoincrement=False, nullable=False),
        sa.Column("owner_key", sa.LargeBinary, nullable=False),
        sa.Column("rtype", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("rdata_key", sa.LargeBinary, nullable=False),
        sa.Column("owner", sa.LargeBinary, nullable=False),
        sa.Column("ttl", sa.BigInteger, nullable=False),
        sa.Column("rdata", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("zone_id", "owner_key", "rtype", "rdata_key", name="pk_record"),
        sa.ForeignKeyConstraint(["zone_id"], ["zone.id"], name="fk_record_zone_id_zone", ondelete="CASCADE"),
        sa.CheckConstraint("rtype BETWEEN 1 AND 65535", name=op.f("ck_record_rtype")),
        sa.CheckConstraint("ttl BETWEEN 0 AND 4294967295", name=op.f("ck_record_ttl")),
        sqlite_with_rowid=False,
    )
    put = sa.text(
        "INSERT INTO record (zone_id, owner_key, owner, rtype, ttl, rdata, expires_at, rdata_key)"
        " VALUES (:zone_id, :owner_key, :owner, :rtype, :ttl, :rdata, :expires_at, :rdata_key)"
    )
    for rows in _pages("node", _NODE, "owner_key"):
        records = [
            {**dict(zip(_RECORD, (*row[:3], *rr), strict=True)), "rdata_key": _rdata_key(rr[0], rr[2])}
            for row in rows
            for rr in _unpacked(row[3])
        ]
        op.get_bind().execute(put, records)
    op.execute(
        "INSERT INTO renewal (zone_id, owner_key, at, key, peer)"
        " SELECT zone_id, owner_key, renewed_at, renewed_key, renewed_peer FROM node WHERE renewed_at IS NOT NULL"
        " ON CONFLICT (zone_id, owner_key) DO UPDATE SET at = excluded.at, key = excluded.key, peer = excluded.peer"
    )
    op.drop_table("node")


def _pages(table: str, columns: tuple[str, ...], order: str) -> Iterator[list[Any]]:
    """The rows of a table in order, in lists that split no owner name; bounded whatever the size of the table."""
    connection = op.get_bind()
    wanted = sa.text(
        f"SELECT {', '.join(columns)} FROM {table} WHERE zone_id = :zone AND owner_key >= :low"  # noqa: S608
        f" ORDER BY {order} LIMIT :limit"
    )
    for zone in connection.execute(sa.text("SELECT id FROM zone ORDER BY id")).scalars().all():
        low, limit = b"", _PAGE
        while rows := list(connection.execute(wanted, {"zone": zone, "low": low, "limit": limit})):
            if len(rows) < limit:
                yield rows
                break
            last = rows[-1].owner_key
            whole = [row for row in rows if row.owner_key != last]  # the last name may go on in the next page
            if whole:
                yield whole
                low, limit = last, _PAGE
            else:
                limit *= 2  # a name that does not fit in a page


def _packed(records: list[Any]) -> bytes:
    """Records of one owner, in order, as octets."""
    out = [b"\1"]
    for rtype, rows in groupby(records, key=lambda row: row.rtype):
        rrset = list(rows)
        out.append(_RRSET.pack(rtype, rrset[-1].ttl, len(rrset)))
        for row in rrset:
            out += (_RR.pack(row.expires_at or 0, len(row.rdata)), row.rdata)
    return b"".join(out)


def _unpacked(data: bytes) -> Iterator[tuple[int, int, bytes, int | None]]:
    """Octets as (type, TTL, rdata, expires_at)."""
    position = 1
    while position < len(data):
        rtype, ttl, count = _RRSET.unpack_from(data, position)
        position += _RRSET.size
        for _ in range(count):
            at, size = _RR.unpack_from(data, position)
            start = position + _RR.size
            position = start + size
            yield rtype, ttl, data[start:position], at or None


def _rdata_key(rtype: int, rdata: bytes) -> bytes:
    """Canonical rdata, or of long one its beginning and a digest of the whole: what revisions before this keyed by."""
    key = canonical(rtype, rdata)
    return key if len(key) <= 256 else key[:225] + sha256(key).digest()
