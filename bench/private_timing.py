"""Does the time a private member's refusal takes tell whether a name exists?

Unsigned queries for names that are there and names that are not go to one server in random order; the medians are
compared, and how often a random split of the very same measurements differs as much or more: that share is large when
the names cannot be told apart.

    .venv/bin/python -m bench.private_timing [QUERIES]
"""

import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from protocol.constants import Opcode, Rcode, Type
from protocol.edns import Opt
from protocol.message import Question, decode, encode
from protocol.name import from_text
from protocol.tsig import Key, algorithm_from_text, sign

ZONE = "members.example."
NAMES = 2000
WARM_UP = 2000
SPLITS = 1000


def main() -> None:
    """Measure over UDP, one query at a time."""
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "server.toml"
        config.write_text(
            f'[database]\nurl = "sqlite:///{directory}/homing.db"\n[zone]\nname = "{ZONE}"\n'
            '[dns]\nlisten = ["127.0.0.1:0"]\nrate_limit = 0\n[log]\nlevel = "warning"\n'
        )
        made = _homing("member", "add", "carol", "--private", "--json", "--config", str(config))
        server = subprocess.Popen(
            [sys.executable, "-m", "homing", "serve", "--config", str(config)], stdout=subprocess.PIPE, text=True
        )
        try:
            port = _port(server)
            _fill(port, json.loads(made))
            _report(_measure(port, queries))
        finally:
            server.terminate()
            server.wait(20)


def _homing(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "homing", *arguments], check=True, capture_output=True, text=True
    ).stdout


def _port(server: "subprocess.Popen[str]") -> int:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("listening udp"):
            return int(line.rpartition(":")[2])
    raise SystemExit("the server did not start")


def _fill(port: int, made: dict[str, str]) -> None:
    """Give the member its names, signed and leased."""
    import base64

    key = Key(from_text(made["name"]), algorithm_from_text(made["algorithm"]), base64.b64decode(made["secret"]))
    lease = (2, (7200).to_bytes(4, "big"))
    with socket.create_connection(("127.0.0.1", port), 30) as stream:
        for first in range(0, NAMES, 500):
            ops = [
                (_name(f"host{number}"), Type.A, 1, 60, number.to_bytes(4, "big"))
                for number in range(first, first + 500)
            ]
            zone = Question(from_text(f"carol.{ZONE}"), Type.SOA, 1)
            wire = encode(first, Opcode.UPDATE << 11, [zone], authority=ops, opt=Opt(1232, options=(lease,)))
            signed, _ = sign(wire, key, now=int(time.time()))
            stream.sendall(len(signed).to_bytes(2, "big") + signed)
            size = int.from_bytes(stream.recv(2, socket.MSG_WAITALL), "big")
            reply = decode(stream.recv(size, socket.MSG_WAITALL))
            if reply.header.rcode != Rcode.NOERROR:
                raise SystemExit(f"the update was refused: {reply.header.rcode}")


def _name(label: str) -> bytes:
    return from_text(f"{label}.carol.{ZONE}")


def _measure(port: int, queries: int) -> dict[bool, list[float]]:
    """Microseconds by whether the name is there. Names are equally long, each is asked for about as often."""
    times: dict[bool, list[float]] = {True: [], False: []}
    chance = random.Random(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.connect(("127.0.0.1", port))
        channel.settimeout(5)
        for number in range(queries + WARM_UP):
            is_there = chance.random() < 0.5
            label = f"{'host' if is_there else 'none'}{chance.randrange(NAMES)}"
            wire = encode(number & 0xFFFF, 0, [Question(_name(label), Type.A, 1)], opt=Opt(1232))
            begin = time.perf_counter()
            channel.send(wire)
            reply = channel.recv(4096)
            took = time.perf_counter() - begin
            if reply[3] & 0xF != Rcode.REFUSED:
                raise SystemExit("a stranger was answered")
            if number >= WARM_UP:
                times[is_there].append(took * 1e6)
    return times


def _report(times: dict[bool, list[float]]) -> None:
    there, absent = times[True], times[False]
    for words, values in (("names that are there", there), ("names that are not", absent)):
        cuts = statistics.quantiles(values, n=100)
        print(
            f"{words}: {len(values)} refusals, median {cuts[49]:.2f} us, p90 {cuts[89]:.2f} us, p99 {cuts[98]:.2f} us"
        )
    observed = abs(statistics.median(there) - statistics.median(absent))
    pooled, chance = [*there, *absent], random.Random(2)
    worse = 0
    for _ in range(SPLITS):
        chance.shuffle(pooled)
        split = abs(statistics.median(pooled[: len(there)]) - statistics.median(pooled[len(there) :]))
        worse += split >= observed
    print(f"medians differ by {observed:.3f} us; {worse / SPLITS:.0%} of random splits differ as much or more")


if __name__ == "__main__":
    main()
