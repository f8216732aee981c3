"""The fuzzer's targets hold for what it starts from, for what it found, and for some thousand changes of these."""

import random

import pytest

from tests.fuzz.seeds import FOUND, seeds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_what_it_starts_from(target: str) -> None:
    inputs = list(seeds(target))
    assert len(inputs) > 30
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_changes_of_it(target: str) -> None:
    dice = random.Random(target)
    inputs = list(seeds(target))
    for _ in range(1500):
        data = bytearray(dice.choice(inputs))
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(data) + 1)
            match dice.randrange(4):
                case 0:
                    data[at : at + 1] = bytes((dice.randrange(256),))
                case 1:
                    del data[at : at + dice.randrange(1, 9)]
                case 2:
                    data[at:at] = dice.randbytes(dice.randrange(1, 9))
                case _:
                    other = dice.choice(inputs)
                    data[at:] = other[dice.randrange(len(other)) :]
        TARGETS[target](bytes(data))


def test_every_input_kept_belongs_to_a_target() -> None:
    for path in FOUND.glob("*"):
        assert path.suffix == ".hex" and path.stem.partition("-")[0] in TARGETS, path
