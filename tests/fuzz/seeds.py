"""Where the fuzzer starts from: the golden packets, the messages of the dispatch test, and what it found before."""

from collections.abc import Iterator
from typing import Final

from protocol.edns import Opt
from tests.support import golden
from tests.support.builders import query_message
from tests.support.golden import DATA

FOLDERS: Final = ("llq", "update", "tsig", "edns")
FOUND: Final = DATA / "fuzz"
"""Inputs that once broke something, or lead into code that is hard to reach, as `target-what.hex`."""


def seeds(target: str) -> Iterator[bytes]:
    """Inputs for a target, each a different one."""
    packets = [item.wire for folder in FOLDERS for item in golden.below(folder)]
    packets += [query_message("mac.alice.members.example.", rtype, edns=Opt(1232)) for rtype in ("A", "ANY", "SRV")]
    seen = set()
    for number, packet in enumerate(packets):
        for made in _shapes(target, packet, number):
            if made not in seen:
                seen.add(made)
                yield made
    if target == "decode":
        for item in (*golden.below("natpmp"), *golden.below("pcp")):
            yield b"\0" + item.wire
    for path in sorted(FOUND.glob(f"{target}-*.hex")):
        yield golden.parse(path.stem, path.read_text("utf-8")).wire


def _shapes(target: str, packet: bytes, number: int) -> Iterator[bytes]:
    if target == "decode":
        yield b"\xff" + packet
    elif target == "pipeline":
        for how in (number % 5, 0x20 + number % 5, 2, 3):
            yield bytes((how,)) + packet
    else:
        frame = len(packet).to_bytes(2, "big") + packet
        yield bytes((number % 5, 3)) + frame * 2
        yield bytes((0x80 + number % 5, 16)) + frame + frame[:7]
        yield bytes((0x40, 200)) + frame
