"""`python -m bench.watch_loss`: how long a change takes to a watcher behind a link that loses packets.

Two network namespaces joined by a veth pair, each dropping a share of what comes in at random (by nftables: not every
kernel has netem). `homing serve` in one, `homing watch` in the other; updates are sent beside the server, where
nothing is lost. After each update the watcher must have the new address; the time from the update's reply to the
watcher's line is taken. Needs root, `ip` and `nft`; touches no namespace but its own.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import dns.edns
import dns.query
import dns.tsig
import dns.update

from homing.certificates import ensure_certificates

SERVER, WATCHER = "10.77.0.1", "10.77.0.2"
PORT, TLS_PORT = 5300, 8853
NAME: Final = "mac.alice.members.example."
HOMING: Final = (sys.executable, "-m", "homing")


def _run(*arguments: str) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=30).stdout


@contextlib.contextmanager
def _lossy_link(share: int) -> Iterator[tuple[str, str]]:
    names = f"homing-s{os.getpid()}", f"homing-w{os.getpid()}"
    with ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, (SERVER, WATCHER), strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            rule = f"iifname eth0 meta l4proto {{ udp, tcp }} numgen random mod 100 < {share} drop"
            _run(
                "ip", "netns", "exec", name, "nft",
                f"add table inet loss; add chain inet loss in {{ type filter hook input priority 0; }}; "
                f"add rule inet loss in {rule}",
            )  # fmt: skip
        yield names


class _Watched:
    """The watcher's view, kept by a thread that reads its lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._changed = threading.Condition()
        self.view: set[str] = set()
        self.way = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            with self._changed:
                if found["event"] == "add":
                    self.view.add(found["rdata"])
                elif found["event"] == "remove":
                    self.view.discard(found["rdata"])
                elif found["event"] == "way":
                    self.way = found["via"]
                self._changed.notify_all()

    def wait_for(self, view: set[str], seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.view == view, seconds)


def measure(via: str, share: int, updates: int, patience: float) -> dict[str, object]:
    """Seconds from reply to sight for each of `updates`; those not seen within `patience` are counted as late."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="homing-loss-")))
        server, watcher = stack.enter_context(_lossy_link(share))
        files = ensure_certificates(directory / "tls", ["ns.members.example"], [SERVER])
        config = directory / "server.toml"
        config.write_text(
            f'[database]\nurl = "sqlite+aiosqlite:///{directory}/homing.db"\n'
            f'[dns]\nlisten = ["{SERVER}:{PORT}", "127.0.0.1:{PORT}"]\nlisten_tls = ["{SERVER}:{TLS_PORT}"]\n'
            f'certificate_file = "{files.certificate_file}"\nkey_file = "{files.key_file}"\n'
            f'[zone]\naddresses = ["{SERVER}"]\n[log]\nlevel = "error"\n'
        )
        made = json.loads(_run(*HOMING, "member", "add", "alice", "--json", "--config", str(config)))
        found = made.get("key", made)
        key = dns.tsig.Key(found["name"], found["secret"], found["algorithm"])
        serving = stack.enter_context(
            subprocess.Popen(
                ["ip", "netns", "exec", server, *HOMING, "serve", "--config", str(config)], stdout=subprocess.PIPE
            )
        )
        stack.callback(serving.terminate)
        assert serving.stdout is not None and serving.stdout.readline() == b"ready\n"
        watching = stack.enter_context(
            subprocess.Popen(
                ["ip", "netns", "exec", watcher, *HOMING, "watch", NAME, "A", "--server", f"{SERVER}:{PORT}",
                 "--ca-file", str(files.ca_file), "--via", via, "--json"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
        )  # fmt: skip
        stack.callback(watching.terminate)
        watched = _Watched(watching)
        times: list[float] = []
        late = 0
        for number in range(updates):
            address = f"203.0.{number >> 8}.{number & 255}"
            _update(server, key, address)
            replied_at = time.monotonic()
            if watched.wait_for({address}, patience):
                times.append(time.monotonic() - replied_at)
            else:
                late += 1
            if number % 50 == 49:
                print(f"{via}: {number + 1} of {updates}", file=sys.stderr)
        ordered = sorted(times[1:])  # the first waits for the set-up
        return {
            "via": watched.way,
            "loss_percent": share,
            "updates": updates,
            "seen": len(times),
            "late": late,
            "p50_ms": round(statistics.median(ordered) * 1000, 1),
            "p99_ms": round(ordered[int(len(ordered) * 0.99) - 1] * 1000, 1),
            "worst_ms": round(ordered[-1] * 1000, 1),
        }


def _update(namespace: str, key: dns.tsig.Key, address: str) -> None:
    update = dns.update.UpdateMessage("members.example.", keyring=key)
    update.delete(NAME)
    update.add(NAME, 120, "A", address)
    update.use_edns(0, options=[dns.edns.GenericOption(2, (1800).to_bytes(4, "big"))])
    with _in_namespace(namespace):
        reply = dns.query.udp(update, "127.0.0.1", port=PORT, timeout=10)
    if reply.rcode():
        raise RuntimeError(f"update answered {reply.rcode()}")


@contextlib.contextmanager
def _in_namespace(name: str) -> Iterator[None]:
    """Have this thread in a namespace; a socket stays in the one it was made in."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as before, open(f"/run/netns/{name}", "rb") as inside:  # noqa: PTH123
        libc.setns(inside.fileno(), 0x40000000)
        try:
            yield
        finally:
            libc.setns(before.fileno(), 0x40000000)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.watch_loss", description=__doc__)
    parser.add_argument("ways", nargs="*", default=["push", "llq-tls", "llq-udp"])
    parser.add_argument("--loss", type=int, default=20, help="percent of packets lost each way")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which an update counts as late")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    results = [measure(way, options.loss, options.updates, options.patience) for way in options.ways]
    print("| way | loss | updates | seen | p50 | p99 | worst |\n|---|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['via']} | {row['loss_percent']} % | {row['updates']} | {row['seen']} | {row['p50_ms']} ms | "
            f"{row['p99_ms']} ms | {row['worst_ms']} ms |"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
