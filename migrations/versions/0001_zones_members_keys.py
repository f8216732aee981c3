"""Zones, records, the change journal, members and keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "member",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("domain", sa.LargeBinary, nullable=False),
        sa.Column("private", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_member"),
        sa.UniqueConstraint("name", name="uq_member_name"),
        sa.UniqueConstraint("domain", name="uq_member_domain"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "zone",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("apex", sa.LargeBinary, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("member_id", _ID),
        sa.Column("serial", sa.BigInteger, nullable=False),
        sa.Column("soa", sa.LargeBinary, nullable=False),
        sa.Column("soa_ttl", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_zone"),
        sa.UniqueConstraint("apex", name="uq_zone_apex"),
        sa.ForeignKeyConstraint(["member_id"], ["member.id"], name="fk_zone_member_id_member", ondelete="CASCADE"),
        sa.CheckConstraint("kind IN ('service', 'member')", name=op.f("ck_zone_kind")),
        sa.CheckConstraint("(kind = 'member') = (member_id IS NOT NULL)", name=op.f("ck_zone_member")),
        sa.CheckConstraint("serial BETWEEN 0 AND 4294967295", name=op.f("ck_zone_serial")),
        sqlite_autoincrement=True,
    )
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
    op.create_table(
        "change",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("zone_id", _ID, nullable=False),
        sa.Column("serial_from", sa.BigInteger, nullable=False),
        sa.Column("serial_to", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor_kind", sa.String(16), nullable=False),
        sa.Column("actor_key", sa.Text, nullable=False),
        sa.Column("actor_peer", sa.Text, nullable=False),
        sa.Column("removed", sa.LargeBinary, nullable=False),
        sa.Column("added", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_change"),
        sa.ForeignKeyConstraint(["zone_id"], ["zone.id"], name="fk_change_zone_id_zone", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_change_zone_id_serial_from", "change", ["zone_id", "serial_from"])
    op.create_table(
        "tsig_key",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.LargeBinary, nullable=False),
        sa.Column("algorithm", sa.String(32), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("member_id", _ID),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("last_used_at", sa.BigInteger),
        sa.Column("kdf", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_tsig_key"),
        sa.UniqueConstraint("name", name="uq_tsig_key_name"),
        sa.ForeignKeyConstraint(["member_id"], ["member.id"], name="fk_tsig_key_member_id_member", ondelete="CASCADE"),
    )
    op.create_index("ix_tsig_key_member_id", "tsig_key", ["member_id"])
    op.create_table(
        "meta",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
    )
    op.execute("INSERT INTO meta (name, value) VALUES ('generation', '0')")


def downgrade() -> None:
    for table in ("meta", "tsig_key", "change", "record", "zone", "member"):
        op.drop_table(table)
