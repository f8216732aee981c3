"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

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
