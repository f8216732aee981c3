"""Who renewed the leases of a name last."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "renewal",
        sa.Column("zone_id", _ID, autoincrement=False, nullable=False),
        sa.Column("owner_key", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("zone_id", "owner_key", name="pk_renewal"),
        sa.ForeignKeyConstraint(["zone_id"], ["zone.id"], name="fk_renewal_zone_id_zone", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("renewal")
