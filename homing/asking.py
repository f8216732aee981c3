"""What commands ask people, or read from stdin in their place; and how a key's algorithm and password are given."""

import sys
from typing import Annotated, Final

import typer

from homing.config_file import ConfigError
from homing.running import OperationError
from protocol.tsig import MD5, Algorithm, algorithm_from_text
from server.config import ServerSettings

AlgorithmName = Annotated[
    str, typer.Option("--algorithm", metavar="NAME", help="TSIG algorithm, such as hmac-sha256 or hmac-sha512.")
]
PasswordFromStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Derive the key from a password, the first line of stdin; asked for on a terminal."
    ),
]

_LONGEST_PASSWORD: Final = 1024


def checked_algorithm(text: str, settings: ServerSettings) -> Algorithm:
    """The algorithm of that name, if the server takes it."""
    try:
        algorithm = algorithm_from_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--algorithm") from None
    if algorithm is MD5 and not settings.dns.allow_md5:
        raise ConfigError("hmac-md5 keys work only with allow_md5 = true in [dns] (RFC 8945 forbids them)")
    return algorithm


def read_password() -> str:
    """From the terminal, twice and unseen, or the first line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    try:
        line = sys.stdin.readline(_LONGEST_PASSWORD + 2)
    except UnicodeDecodeError:
        raise OperationError("the password on stdin is not UTF-8 text") from None
    password = line.rstrip("\r\n")
    if not password:
        raise OperationError("no password on stdin")
    if len(password) > _LONGEST_PASSWORD:
        raise OperationError(f"the password has more than {_LONGEST_PASSWORD} letters")
    return password


def confirm(question: str, otherwise: str) -> None:
    """Ask on the terminal; `OperationError(otherwise)` for a no, `ConfigError` where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on: say --yes")
    if not typer.confirm(question, err=True):
        raise OperationError(otherwise)
