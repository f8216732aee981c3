"""Every `rfc` marker names a section that is there: numbers from memory led readers astray."""

from pathlib import Path

from tools.rfc_coverage import markers

ROOT = Path(__file__).parents[2]
UNNUMBERED = {"2782": {"-"}}  # its sections have titles alone


def listed() -> dict[str, set[str]]:
    found = dict(UNNUMBERED)
    for line in (ROOT / "tests" / "data" / "rfc-sections.txt").read_text().splitlines():
        if not line.startswith("#"):
            number, _, sections = line.partition(": ")
            found[number] = set(sections.split())
    return found


def test_the_sections_that_tests_cite_exist() -> None:
    """In the RFCs that are listed; a new one may be added from its table of contents."""
    known = listed()
    wrong = [
        f"{file.name}::{test} cites RFC {number} section {section}"
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for number, section, test in markers(file)
        if number in known and section not in known[number]
    ]
    assert wrong == []
