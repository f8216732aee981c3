"""Tables of the store. Revisions in `migrations/versions` make them; a test compares the two.

Names are wire octets. Times are whole seconds since 1970. Integers are 64 bits wide where the wire has 32 unsigned.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD: Final = "0006"
"""The revision these tables have; a database at it is opened without loading Alembic."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column of type INTEGER

member = Table(
    "member",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False),
    Column("domain", LargeBinary, nullable=False),
    Column("private", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name"),
    UniqueConstraint("domain"),
    sqlite_autoincrement=True,
)

zone = Table(
    "zone",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("apex", LargeBinary, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("member_id", Id, ForeignKey("member.id", ondelete="CASCADE")),
    Column("serial", BigInteger, nullable=False),
    Column("soa", LargeBinary, nullable=False),
    Column("soa_ttl", BigInteger, nullable=False),
    UniqueConstraint("apex"),
    CheckConstraint("kind IN ('service', 'member', 'catalog')", name="kind"),
    CheckConstraint("(kind = 'member') = (member_id IS NOT NULL)", name="member"),
    CheckConstraint("serial BETWEEN 0 AND 4294967295", name="serial"),
    sqlite_autoincrement=True,  # a removed zone's number never comes back as another zone
)

# `owner_key` is packing.order_key of the owner, so that the primary key (the table itself, in SQLite) holds a member's
# names side by side; `data` has the RRsets with their leases, as server/zone/node.py says. `renewed_*` tell who renewed
# leases last. There is no index on leases: they fall due from memory, and each refresh would write it.
node = Table(
    "node",
    metadata,
    Column("zone_id", Id, ForeignKey("zone.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("owner_key", LargeBinary, primary_key=True),
    Column("owner", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("renewed_at", BigInteger),
    Column("renewed_key", Text),
    Column("renewed_peer", Text),
    sqlite_with_rowid=False,
)

change = Table(
    "change",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("zone_id", Id, ForeignKey("zone.id", ondelete="CASCADE"), nullable=False),
    Column("serial_from", BigInteger, nullable=False),
    Column("serial_to", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("actor_kind", String(16), nullable=False),
    Column("actor_key", Text, nullable=False),
    Column("actor_peer", Text, nullable=False),
    Column("removed", LargeBinary, nullable=False),
    Column("added", LargeBinary, nullable=False),
    Index(None, "zone_id", "serial_from"),
    sqlite_autoincrement=True,  # readers resume after an id, so ids only grow
)

# Who renewed the leases of a name last, when the name is gone.
renewal = Table(
    "renewal",
    metadata,
    Column("zone_id", Id, ForeignKey("zone.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("owner_key", LargeBinary, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("key", Text, nullable=False),
    Column("peer", Text, nullable=False),
    sqlite_with_rowid=False,
)

tsig_key = Table(
    "tsig_key",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", LargeBinary, nullable=False),
    Column("algorithm", String(32), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("member_id", Id, ForeignKey("member.id", ondelete="CASCADE")),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("kdf", Text),
    Column("expires_at", BigInteger),
    UniqueConstraint("name"),
    Index(None, "member_id"),
)

# The rules of one key in order of position; lists are words with one space between, names absolute and lowered.
policy_rule = Table(
    "policy_rule",
    metadata,
    Column("key_id", Id, ForeignKey("tsig_key.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("allow", Boolean, nullable=False),
    Column("actions", Text, nullable=False),
    Column("owner_match", String(16), nullable=False),
    Column("owner", Text),
    Column("types", Text),
    Column("target", Text),
    Column("lease", String(16)),
    Column("default_lease", BigInteger, nullable=False),
    Column("records_per_name", BigInteger),
    Column("names_per_member", BigInteger),
    Column("updates_per_minute", BigInteger),
    CheckConstraint("owner_match IN ('self', 'subtree', 'pattern', 'zone')", name="owner_match"),
    CheckConstraint("lease IN ('required', 'optional')", name="lease"),
    sqlite_with_rowid=False,
)

meta = Table(
    "meta",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# Long-Lived Queries. Many subscriptions watch one topic and mostly hold the same, so what they hold stands there, and a
# change that reaches all of them writes one row. `node` tells servers on one database apart.
llq_topic = Table(
    "llq_topic",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("owner", LargeBinary, primary_key=True),
    Column("rtype", Integer, primary_key=True, autoincrement=False),
    Column("sure", LargeBinary, nullable=False),
    Column("maybe", LargeBinary),
    sqlite_with_rowid=False,
)

llq = Table(
    "llq",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("owner", LargeBinary, primary_key=True),
    Column("rtype", Integer, primary_key=True, autoincrement=False),
    Column("llq_id", LargeBinary(8), primary_key=True),
    Column("name", LargeBinary),
    Column("address", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("listener", Text, nullable=False),
    Column("key_name", LargeBinary),
    Column("expires_at", BigInteger, nullable=False),
    Column("is_stream_born", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

# No foreign key: a zone that goes takes no subscription along, its watchers are told that the records are gone.
llq_mark = Table(
    "llq_mark",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("zone_id", Id, primary_key=True, autoincrement=False),
    Column("serial", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
