"""The same updates to us, BIND and Knot DNS: RCODE and resulting zone equal, or a numbered deviation.

One in four of the messages behind docs/update-comparison.md, which `make compare` makes from all of them.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.foreign import need
from tests.support.update_cases import cases
from tests.support.update_comparison import SERVERS, compare, why

DEVIATIONS = (Path(__file__).parents[2] / "docs" / "deviations.md").read_text()
TABLE = (Path(__file__).parents[2] / "docs" / "update-comparison.md").read_text()


@pytest.mark.rfc("2136", "3.2.5")
@pytest.mark.rfc("2136", "3.4.1.3")
@pytest.mark.rfc("2136", "3.4.2.7")
@pytest.mark.rfc("2136", "3.4.2.6")
def test_every_result_is_theirs_or_a_numbered_deviation(tmp_path: Path) -> None:
    need("nsupdate")  # it comes with the servers
    compared = compare(tmp_path, cases()[::4])
    unexplained = [f"{item.case.group}: {item.case.title}" for item in compared if item.differs and not why(item)]
    assert unexplained == []
    ours, bind, _ = SERVERS
    equal = sum(item.results[ours].key == item.results[bind].key for item in compared)
    assert equal > 0.8 * len(compared)


def test_the_table_is_of_these_messages_and_every_reason_is_written_down() -> None:
    rows = [
        line.split(" | ") for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| update")
    ]
    titles = Counter(row[0].removeprefix("| ").replace("\\*", "*") for row in rows)
    assert titles == Counter(case.title for case in cases())
    assert len(rows) >= 300
    reasons = {row[-1].removesuffix(" |").strip() for row in rows} - {"|", ""}
    assert reasons and all(f"\n| {reason} |" in DEVIATIONS for reason in reasons), reasons
