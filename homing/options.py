"""Options that several commands have."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homing.config_file import LOG_LEVEL, ConfigError, open_secret_files
from homing.logs import LEVELS
from homing.running import OperationError

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="HOMING_CONFIG",
        metavar="FILE",
        show_default=False,
        help="The TOML configuration file.",
    ),
]


class LogLevel(StrEnum):
    """How much goes to stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Level = Annotated[
    LogLevel | None,
    typer.Option("--log-level", help="How much to log on stderr, instead of HOMING_LOG_LEVEL and [log] level."),
]


def bare_level(flag: LogLevel | None) -> str:
    """The level for a program whose file has no `[log]`."""
    text = flag.value if flag else os.environ.get(LOG_LEVEL) or LogLevel.INFO
    if text not in LEVELS:
        raise ConfigError(f"{LOG_LEVEL}: must be one of {', '.join(LEVELS)}, not {text[:80]!r}")
    return text


def refuse_open_secrets(settings: "BaseModel") -> None:
    """`OperationError` if others may read a secret file."""
    problems = open_secret_files(settings)
    if problems:
        raise OperationError("\n".join(problems))
