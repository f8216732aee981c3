"""A batch of UDP queries answered where it lies: the loop that every plain query runs through.

Requests stand in the slots of one buffer, replies are written over them, behind the message ID. In the order of how
often it happens: a ready answer; a name that is not there, below a parent where many were asked for (`absent_names`);
what `fastpath` joins from the zone; what it answers beside a signature or a cookie. What is left is named, for the
listener to take it apart.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from server.fast_wire import WHOLE_COOKIE
from server.transport.ports import Fast

_END_OF_TSIG: Final = bytes(4)  # no error, no other data; the message's own ID before it
_ARCOUNT: Final = slice(8, 10)  # of a key; made once, as this is cut from every datagram that has no ready answer
_NOTHING: Final = b"\0\0"
_UPDATE: Final = (b"\x28", b"\x29")  # what the key of one begins with, by RD: taken apart by the dispatcher


def answer_batch(
    fast: Fast, octets: Any, starts: Sequence[int], sizes: Sequence[int], sender: Callable[[int], bytes]
) -> tuple[list[int], list[int]]:
    """Write replies over the requests of a batch; (octets of each reply, slots that nothing here answers).

    `octets`: the slots' buffer, whose slices are `bytes`. `starts`: of each slot, behind the ID. `sizes`: of the
    requests. `sender`: the address in a slot as 4 or 16 octets. Both sizes count the ID.
    """
    get, absent_below = fast.ready.get, fast.absent.found.get
    answer, signed, apexes = fast.answer, fast.answer_signed, fast.apexes
    reply_sizes: list[int] = []
    add = reply_sizes.append
    slow: list[int] = []
    absent = 0
    last_absent = b""
    for at, size in zip(starts, sizes, strict=False):
        key = octets[at : at + size - 2]
        reply = get(key)
        if reply is None:
            try:
                first = key[10]
            except IndexError:  # no message
                slow.append(len(reply_sizes))
                add(0)
                continue
            common = absent_below(key[:10] + key[first + 11 :])
            if common is not None:
                nodes, children, head, behind, outside, tails = common
                name = key[10:behind].lower()
                tail = tails[first]
                if tail is not None and name not in nodes and name not in children and name not in apexes:
                    octets[at : at + 10] = head
                    start = at + size + outside
                    end = start + len(tail)
                    octets[start:end] = tail
                    add(end - at + 2)
                    absent += 1
                    last_absent = key
                    continue
            if key[_ARCOUNT] == _NOTHING:  # neither signed nor with an OPT
                reply = answer(key)
            elif key[:1] not in _UPDATE:
                if key[-6:] == octets[at - 2 : at] + _END_OF_TSIG and signed is not None:
                    reply = signed(octets[at - 2 : at + size - 2])
                elif key[-30:-24] != WHOLE_COOKIE:
                    reply = answer(key)
                if reply is None:
                    reply = fast.answer_with_cookie(key, sender(len(reply_sizes)))
            if reply is None:
                slow.append(len(reply_sizes))
                add(0)
                continue
        length = len(reply)
        octets[at : at + length] = reply
        add(length + 2)
    if absent:
        fast.absent_told(absent, last_absent)
    return reply_sizes, slow
