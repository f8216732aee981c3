"""What commands print: JSON for machines, tables for people, times in UTC."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer

Row = Sequence[str]


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_table(header: Row, rows: Sequence[Row]) -> None:
    """A table for people on a terminal, else columns of plain text."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in header:
            table.add_column(title, overflow="fold")  # a name that is cut off is of no use
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def minute_text(unix: int) -> str:
    """For people."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%MZ")
