"""Keys that expire, and rules of single keys."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("tsig_key", sa.Column("expires_at", sa.BigInteger))
    op.create_table(
        "policy_rule",
        sa.Column("key_id", _ID, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("allow", sa.Boolean, nullable=False),
        sa.Column("actions", sa.Text, nullable=False),
        sa.Column("owner_match", sa.String(16), nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("types", sa.Text),
        sa.Column("target", sa.Text),
        sa.Column("lease", sa.String(16)),
        sa.Column("default_lease", sa.BigInteger, nullable=False),
        sa.Column("records_per_name", sa.BigInteger),
        sa.Column("names_per_member", sa.BigInteger),
        sa.Column("updates_per_minute", sa.BigInteger),
        sa.PrimaryKeyConstraint("key_id", "position", name="pk_policy_rule"),
        sa.ForeignKeyConstraint(["key_id"], ["tsig_key.id"], name="fk_policy_rule_key_id_tsig_key", ondelete="CASCADE"),
        sa.CheckConstraint(
            "owner_match IN ('self', 'subtree', 'pattern', 'zone')", name=op.f("ck_policy_rule_owner_match")
        ),
        sa.CheckConstraint("lease IN ('required', 'optional')", name=op.f("ck_policy_rule_lease")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("policy_rule")
    op.drop_column("tsig_key", "expires_at")
