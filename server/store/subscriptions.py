"""Long-Lived Queries in SQL: what is written of them, about once a second."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Table, and_, bindparam, delete
from sqlalchemy.engine import Dialect

from server.store import schema
from server.store.api import SubscriptionChanges, SubscriptionRow
from server.store.writing import Rows, Statement, Step, insert_or_replace

_TOPIC_KEY: Final = ("node", "owner", "rtype")
_KEY: Final = (*_TOPIC_KEY, "llq_id")


class SubscriptionStatements:
    """Compiled once for a dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._put_topic = _upsert(schema.llq_topic, dialect)
        self._put = _upsert(schema.llq, dialect)
        self._mark = _upsert(schema.llq_mark, dialect)
        self._desert = _delete(schema.llq_topic, _TOPIC_KEY, dialect)
        self._end = _delete(schema.llq, _KEY, dialect)

    def steps(self, node: str, changes: SubscriptionChanges) -> list[Step]:
        """What to execute, topics before who watches them."""
        rows: Sequence[tuple[Statement, Rows]] = (
            (self._desert, [(node, owner, rtype) for owner, rtype in changes.deserted]),
            (self._put_topic, [(node, *row) for row in changes.topics]),
            (self._end, [(node, owner, rtype, _octets(llq_id)) for owner, rtype, llq_id in changes.ended]),
            (self._put, [_packed(node, row) for row in changes.rows]),
            (self._mark, [(node, zone_id, serial) for zone_id, serial in changes.marks.items()]),
        )
        return [Step(statement, parameters) for statement, parameters in rows if parameters]


def _packed(node: str, row: SubscriptionRow) -> tuple[Any, ...]:
    owner, rtype, llq_id, name, *rest = row
    return node, owner, rtype, _octets(llq_id), None if name == owner else name, *rest


def _octets(llq_id: int) -> bytes:
    return llq_id.to_bytes(8, "big")  # 64 bits unsigned have no integer type in SQL


def _upsert(table: Table, dialect: Dialect) -> Statement:
    insert = insert_or_replace(table, dialect)
    replaced = [column.name for column in table.columns if not column.primary_key]
    statement = insert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={name: insert.excluded[name] for name in replaced}
    )
    return Statement(statement, dialect, [column.name for column in table.columns])


def _delete(table: Table, key: Sequence[str], dialect: Dialect) -> Statement:
    names = [f"the_{name}" for name in key]
    wanted = and_(*(table.c[name] == bindparam(f"the_{name}") for name in key))
    return Statement(delete(table).where(wanted), dialect, names)
