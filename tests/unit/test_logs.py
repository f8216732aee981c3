"""Log lines: form, bounds, escapes, hidden secrets, and libraries' lines in the same form."""

import io
import logging
import re
import subprocess
import sys

import pytest

from homing.logs import LONGEST_VALUE, Renderer, _Bridge


def line(event: str = "update committed", colours: bool = False, **values: object) -> str:
    return Renderer(colours=colours)(None, "info", {"event": event, "level": "info", **values})


def test_a_line() -> None:
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info    update committed  zone=members\.example\. serial=12",
        line(zone="members.example.", serial=12),
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ("line\nbreak", "line\\nbreak"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\udcff", "\\udcff"),
        (b"\x00\xff", "00ff"),
        (None, "None"),
        ("naïve", "naïve"),
    ],
)
def test_values(value: object, shown: str) -> None:
    assert line(key=value).endswith(f"  key={shown}")


def test_nothing_a_peer_chose_breaks_or_floods_a_line() -> None:
    text = line("x\ny" * 10_000, **{"k\n": "\n" * 100_000})
    assert "\n" not in text
    assert len(text) < 5 * LONGEST_VALUE + 200


def test_secrets_are_hidden() -> None:
    assert line(secret="c2VjcmV0", password="hunter2").endswith("secret=(hidden) password=(hidden)")


def test_a_traceback_follows_its_line() -> None:
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        text = line(exc_info=True)
    assert "\nTraceback (most recent call last):\n" in text
    assert text.endswith("RuntimeError: boom")


def test_colours_only_where_asked_for() -> None:
    event = {"event": "x", "level": "error"}
    assert "\x1b[" in Renderer(colours=True)(None, "error", dict(event))
    assert "\x1b[" not in Renderer(colours=False)(None, "error", dict(event))


def test_lines_of_libraries() -> None:
    stream = io.StringIO()
    record = logging.LogRecord("alembic.runtime", logging.WARNING, "", 0, "got %s\n", ("it",), None)
    _Bridge(Renderer(colours=False), stream).emit(record)
    assert re.fullmatch(r"\S+Z warning got it\\n  logger=alembic\.runtime\n", stream.getvalue())


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["ours debug", "theirs info", "ours info", "theirs warning"]),
        ("info", ["ours info", "theirs warning"]),
        ("error", []),
    ],
)
def test_levels_and_streams_of_a_process(level: str, shown: list[str]) -> None:
    program = (
        "import logging, structlog; from homing.logs import configure_logging\n"
        f"configure_logging({level!r})\n"
        "log = structlog.get_logger('x'); theirs = logging.getLogger('asyncio')\n"
        "log.debug('ours debug'); theirs.info('theirs info'); log.info('ours info'); theirs.warning('theirs warning')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    assert [" ".join(text.split()[2:4]) for text in done.stderr.splitlines()] == shown
