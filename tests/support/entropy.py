"""Random numbers that a seed repeats."""

import random


class SeededEntropy:
    """The server's `Entropy` from a seed, which its repr shows so that a failing run can be had again."""

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed
        self._random = random.Random(seed)

    def __repr__(self) -> str:
        return f"SeededEntropy({self.seed})"

    def bits(self, count: int) -> int:
        """`count` random bits as a number."""
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        """`count` random octets; takes the place of `secrets.token_bytes`."""
        return self._random.randbytes(count)
