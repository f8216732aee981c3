"""Golden packets: octets that other programs put on a wire, under tests/data as hex.

A file's first line is a comment that says where the octets come from; the rest is hex, spaces and line ends ignored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parent.parent / "data"


@dataclass(frozen=True, slots=True)
class Golden:
    """`name` is the path below tests/data without its suffix."""

    name: str
    provenance: str
    wire: bytes


def parse(name: str, text: str) -> Golden:
    """Read one file's text; `ValueError` when it does not say where its octets come from or is not hex."""
    first, _, rest = text.partition("\n")
    provenance = first.removeprefix("#").strip()
    if not first.startswith("#") or not provenance:
        raise ValueError(f"golden packet {name} has no provenance line")
    digits = " ".join(line for line in rest.splitlines() if not line.startswith("#"))
    wire = bytes.fromhex(digits)
    if not wire:
        raise ValueError(f"golden packet {name} is empty")
    return Golden(name, provenance, wire)


def load(name: str) -> bytes:
    """The octets of one packet, say `load("llq/apple-setup")`."""
    return parse(name, (DATA / f"{name}.hex").read_text("utf-8")).wire


def below(folder: str) -> list[Golden]:
    """Every packet under a folder of tests/data, in order of name; `LookupError` when there is none."""
    found = [
        parse(path.relative_to(DATA).with_suffix("").as_posix(), path.read_text("utf-8"))
        for path in sorted((DATA / folder).rglob("*.hex"))
    ]
    if not found:
        raise LookupError(f"no golden packets under {folder!r}")
    return found
