"""The inventory of normative sentences (tests/data/normative) is whole, and its tests are there and marked."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tools.rfc_coverage import markers
from tools.rfc_inventory import keywords, numbers, sentences

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def marked() -> dict[str, set[tuple[str, str, str]]]:
    """{RFC: (section, file, test)} of all markers."""
    found = defaultdict(set)
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for rfc, section, test in markers(file):
            found[rfc].add((section, file.relative_to(ROOT / "tests").as_posix(), test))
    return found


def test_every_listed_rfc_has_an_inventory_and_a_count() -> None:
    assert numbers() == sorted(keywords(), key=int)


def test_every_marked_rfc_has_an_inventory(marked: dict[str, set[tuple[str, str, str]]]) -> None:
    assert sorted(set(marked) - set(numbers()), key=int) == []


@pytest.mark.parametrize("rfc", numbers())
def test_every_keyword_of_the_text_is_accounted_for(rfc: str) -> None:
    """Section by section: as many as the text has, no more, no fewer."""
    accounted = Counter[str]()
    for sentence in sentences(rfc):
        accounted[sentence.section] += sentence.keywords
    assert {section: count for section, count in accounted.items() if count} == keywords()[rfc]


@pytest.mark.parametrize("rfc", numbers())
def test_a_claimed_sentence_has_its_test_and_the_test_its_marker(
    rfc: str, marked: dict[str, set[tuple[str, str, str]]]
) -> None:
    wrong = []
    for sentence in sentences(rfc):
        for wanted in sentence.tests:
            places = [
                file
                for section, file, test in marked[rfc]
                if section == sentence.section and wanted in (test, f"{file}::{test}")
            ]
            if len(places) != 1:
                wrong.append(f"{sentence.section} {wanted}: {len(places)} tests of that name with that marker")
    assert wrong == []


@pytest.mark.parametrize("rfc", numbers())
def test_what_is_not_claimed_says_why(rfc: str) -> None:
    assert [item.rule for item in sentences(rfc) if not item.tests and len(item.reason) < 10] == []


@pytest.mark.parametrize("rfc", numbers())
def test_a_marker_stands_for_a_sentence_that_is_claimed(rfc: str, marked: dict[str, set[tuple[str, str, str]]]) -> None:
    """A new marker in a section nobody claimed wants a line in the inventory."""
    claimed = {sentence.section for sentence in sentences(rfc) if sentence.tests}
    assert sorted(f"{section} {file}::{test}" for section, file, test in marked[rfc] if section not in claimed) == []
