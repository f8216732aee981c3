"""The two ways a codec can fail."""


class DecodeError(ValueError):
    """The peer's octets are not what the protocol allows. `offset` counts octets from the start of the message."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at octet {offset}")
        self.reason = reason
        self.offset = offset


class EncodeError(ValueError):
    """We were asked to write something the protocol cannot carry: a fault of ours, never of a peer."""
