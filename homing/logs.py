"""Log lines on stderr: time, level, event, key=value. Standard output belongs to data.

    2026-05-04T10:11:12.131Z info    update committed  zone=members.example. serial=12

Lines of libraries that use the standard `logging` come out in the same form, from warnings on, and all of them when the
level is debug. Every value is bounded, and what a terminal might obey is escaped: peers choose some of it.
"""

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import structlog

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LONGEST_VALUE: Final = 500
_COLOURS: Final = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_SECRETS: Final = frozenset({"secret", "password", "passphrase", "master_key"})


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (default stderr) from `level` on. Once, before the first line."""
    stream = stream or sys.stderr
    number = LEVELS[level]
    renderer = Renderer(colours=stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _without_nothing,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(renderer, stream)]
    root.setLevel(number if number <= logging.DEBUG else max(number, logging.WARNING))
    logging.captureWarnings(True)


def _without_nothing(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A field that has nothing to say is not shown."""
    return {name: value for name, value in event.items() if value is not None and value != ""}


class Renderer:
    """Turns an event into a line; a structlog processor."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        level = str(event.pop("level", "info"))
        fault = event.pop("exc_info", None)
        text = _escaped(str(event.pop("event", "")))
        return self.line(level, text, event) + _traceback(fault)

    def line(self, level: str, text: str, values: Mapping[str, Any]) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        shown = "".join(f" {_escaped(key)}={_value(key, value)}" for key, value in values.items())
        padded = f"{level:<7}"
        colour = _COLOURS.get(level) if self._colours else None
        if colour:
            padded = f"{colour}{padded}\x1b[0m"
        return f"{now}Z {padded} {text}{' ' if shown else ''}{shown}"


def _value(key: str, value: object) -> str:
    if key in _SECRETS:
        return "(hidden)"
    text = _escaped(value.hex() if isinstance(value, bytes | bytearray) else str(value))
    if text and not any(character in text for character in ' "='):
        return text
    quoted = text.replace('"', '\\"')
    return f'"{quoted}"'


def _escaped(text: str) -> str:
    if len(text) > LONGEST_VALUE:
        text = f"{text[:LONGEST_VALUE]}...({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _traceback(fault: object) -> str:
    if fault is True:
        fault = sys.exc_info()[1]
    elif isinstance(fault, tuple):
        fault = fault[1]
    if not isinstance(fault, BaseException):
        return ""
    return "\n" + "".join(traceback.format_exception(fault)).rstrip()


class _Bridge(logging.Handler):
    """Writes what libraries log, in our form."""

    def __init__(self, renderer: Renderer, stream: TextIO) -> None:
        super().__init__()
        self._renderer = renderer
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _escaped(record.getMessage())
            line = self._renderer.line(record.levelname.lower(), text, {"logger": record.name})
            self._stream.write(line + _traceback(record.exc_info) + "\n")
            self._stream.flush()
        except Exception:  # noqa: BLE001  # a log line that cannot be written must not stop what it tells about
            self.handleError(record)
