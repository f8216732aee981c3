"""Zones of the kind "catalog"."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BEFORE = "kind IN ('service', 'member')"
_AFTER = "kind IN ('service', 'member', 'catalog')"


def upgrade() -> None:
    _replace_check(_BEFORE, _AFTER)


def downgrade() -> None:
    op.execute("DELETE FROM zone WHERE kind = 'catalog'")
    _replace_check(_AFTER, _BEFORE)


def _replace_check(before: str, after: str) -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_zone_kind"), "zone")
        op.create_check_constraint(op.f("ck_zone_kind"), "zone", after)
        return
    # To copy the table, as SQLite else asks for, would drop it first, and with it every record by its foreign key. A
    # check may be reworded in place (SQLite, "Making Other Kinds Of Table Schema Changes").
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    connection.execute(
        sa.text("UPDATE sqlite_master SET sql = replace(sql, :before, :after) WHERE type = 'table' AND name = 'zone'"),
        {"before": before, "after": after},
    )
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = RESET")
