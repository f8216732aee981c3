"""What a mapping costs in the kernel: ms an element, by how many there are already.

Through the back end `gateway.backend.nftables`, in a network namespace of its own. Needs root and libnftables:
python -m bench.mappings
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from pathlib import Path

from gateway.backend.nftables import NftablesBackend
from gateway.backend.ruleset import NftablesOptions
from gateway.mappings import Install, Key, Mapping, Origin, Transport

COUNTS = (1, 100, 1000, 5000)
AROUND = 100
"""Mappings made and removed again at each count, apart from the first ones."""
EXTERNAL = "127.0.0.1"
_CLONE_NEWNET = 0x40000000


def install(number: int) -> Install:
    """One of many mappings, all different."""
    inside = Key(Transport.UDP, f"192.168.{number // 250}.{number % 250 + 1}", 4500)
    mapping = Mapping(key=inside, external_port=10000 + number, origin=Origin.NATPMP, expires_at=None)
    return Install(number, mapping, EXTERNAL)


async def measure() -> list[tuple[int, float, float]]:
    """For each count: ms to install one more mapping and ms to remove it, as means."""
    backend = NftablesBackend(NftablesOptions(wan_interface="lo"))
    await backend.start()
    rows = []
    present = 0
    try:
        for count in COUNTS:
            while present < count - 1:
                backend.install(install(present))
                present += 1
            rounds = 1 if count == 1 else AROUND
            numbers = range(count - 1, count - 1 + rounds)
            begun = time.perf_counter()
            for number in numbers:
                backend.install(install(number))
            installed = time.perf_counter()
            for number in numbers:
                backend.remove(number)
            removed = time.perf_counter()
            rows.append((count, (installed - begun) / rounds * 1000, (removed - installed) / rounds * 1000))
            await asyncio.sleep(0)
    finally:
        await backend.stop()
    return rows


def enter_namespace() -> None:
    """Go into a new network namespace, which ends with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise SystemExit("a network namespace needs root")
    # With only the loopback interface, which is down: no packet can disturb.
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


def main() -> None:
    enter_namespace()
    print("mappings  ms to install  ms to remove")
    for count, installing, removing in asyncio.run(measure()):
        print(f"{count:8}  {installing:13.3f}  {removing:12.3f}")


if __name__ == "__main__":
    main()
