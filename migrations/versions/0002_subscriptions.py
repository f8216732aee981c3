"""Long-Lived Queries, so that they outlive the process."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "llq_topic",
        sa.Column("node", sa.String(64), nullable=False),
        sa.Column("owner", sa.LargeBinary, nullable=False),
        sa.Column("rtype", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("sure", sa.LargeBinary, nullable=False),
        sa.Column("maybe", sa.LargeBinary),
        sa.PrimaryKeyConstraint("node", "owner", "rtype", name="pk_llq_topic"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "llq",
        sa.Column("node", sa.String(64), nullable=False),
        sa.Column("owner", sa.LargeBinary, nullable=False),
        sa.Column("rtype", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("llq_id", sa.LargeBinary(8), nullable=False),
        sa.Column("name", sa.LargeBinary),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("listener", sa.Text, nullable=False),
        sa.Column("key_name", sa.LargeBinary),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("is_stream_born", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("node", "owner", "rtype", "llq_id", name="pk_llq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "llq_mark",
        sa.Column("node", sa.String(64), nullable=False),
        sa.Column("zone_id", _ID, autoincrement=False, nullable=False),
        sa.Column("serial", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("node", "zone_id", name="pk_llq_mark"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("llq_mark", "llq", "llq_topic"):
        op.drop_table(table)
