"""The normative sentences of the RFCs we follow, and which test asserts each: tests/data/normative/rfc*.tsv.

A line has four fields between tabs: section, requirement keywords accounted for (tools/rfc_keywords.py counts them in
the text; 0 where the RFC writes its rules without capitals), the rule in our words, and either the names of tests or
`not claimed: ` and the reason. A name that stands in several files is written `unit/test_file.py::test_name`.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "data" / "normative"
NOT_CLAIMED = "not claimed: "


@dataclass(frozen=True)
class Sentence:
    """One rule of an RFC; `tests` is empty where it is not claimed, and `reason` says why."""

    section: str
    keywords: int
    rule: str
    tests: tuple[str, ...]
    reason: str


def numbers() -> list[str]:
    """The RFCs that have an inventory."""
    return sorted((file.stem.removeprefix("rfc") for file in FOLDER.glob("rfc*.tsv")), key=int)


def sentences(rfc: str) -> list[Sentence]:
    """The inventory of an RFC, in its order; ValueError names the line that is malformed."""
    found = []
    file = FOLDER / f"rfc{rfc}.tsv"
    for place, line in enumerate(file.read_text().splitlines(), 1):
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 4 or not all(fields) or not fields[1].isdigit():
            raise ValueError(f"{file.name}:{place}: not section, keywords, rule and tests or reason")
        section, keywords, rule, verdict = fields
        claimed = not verdict.startswith(NOT_CLAIMED)
        found.append(
            Sentence(
                section,
                int(keywords),
                rule,
                tuple(verdict.split(", ")) if claimed else (),
                "" if claimed else verdict.removeprefix(NOT_CLAIMED).strip(),
            )
        )
    return found


def keywords() -> dict[str, dict[str, int]]:
    """{RFC: {section: requirement keywords in its text}}, as tools/rfc_keywords.py counted them."""
    found = {}
    for line in (FOLDER / "keywords.txt").read_text().splitlines():
        if not line.startswith("#"):
            number, _, counts = line.partition(":")
            pairs = (item.split("=") for item in counts.split())
            found[number] = {section: int(count) for section, count in pairs}
    return found
