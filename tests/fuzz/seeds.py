"""Where the fuzzer starts from: the golden packets, the messages of the dispatch test, and what it found before."""

from collections.abc import Iterator
from typing import Final

from protocol import dso
from protocol.edns import Opt
from protocol.message import Question
from protocol.name import from_text
from tests.support import golden
from tests.support.builders import query_message
from tests.support.golden import DATA

FOLDERS: Final = ("llq", "update", "tsig", "edns")
FOUND: Final = DATA / "fuzz"
"""Inputs that once broke something, or lead into code that is hard to reach, as `target-what.hex`."""

_QUESTION: Final = Question(from_text("mac.alice.members.example."), 1, 1)
_DSO: Final = (
    dso.encode_dso(1, [dso.keepalive(15_000, 60_000)]),
    dso.encode_dso(2, [dso.subscribe(_QUESTION), dso.padding_for(60)]),
    dso.encode_dso(0, [dso.unsubscribe(2)]),
    dso.encode_dso(0, [(dso.DsoType.PUSH, _QUESTION.name + bytes.fromhex("0001 0001 0000003c 0004 c0000201"))]),
)


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
        for message in _DSO:
            yield b"\x20" + message
    if target == "streams":
        frames = [len(message).to_bytes(2, "big") + message for message in _DSO]
        yield bytes((0x41, 9)) + b"".join(frames)
        for frame in frames:
            yield bytes((0x41, 200)) + frame
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
