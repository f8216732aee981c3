"""`homing cert`: a private authority and a server certificate, for the lab and for small set-ups."""

import ipaddress
import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from homing.certificates import (
    CERTIFICATE_DAYS,
    CertificateError,
    CertificateFiles,
    Facts,
    ensure_certificates,
    facts,
    files_in,
)
from homing.config_file import ConfigError
from homing.running import OperationError
from protocol.name import from_text, to_text


def cert(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|ADDRESS",
            show_default=False,
            help="What clients call the server: host names, addresses. None: those of the certificate that is there.",
        ),
    ] = None,
    directory: Annotated[
        Path, typer.Option("--dir", "-d", metavar="DIR", help="Where the files are, or are to be.")
    ] = Path(),
    days: Annotated[
        int,
        typer.Option(
            min=1,
            max=CERTIFICATE_DAYS,
            help="How long a new certificate lives; Apple's systems take none that lives longer than this default.",
        ),
    ] = CERTIFICATE_DAYS,
    renew: Annotated[bool, typer.Option("--renew", help="Make a new certificate though the old one is good.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make, check and renew a certificate for DNS over TLS, signed by an authority of your own.

    In DIR it keeps ca.pem, which clients must trust ([dns] ca_file of a client), ca-key.pem, which signs and which
    nobody else should have, and server.pem with server-key.pem, which the server reads ([dns] certificate_file and
    key_file). What is there and good is kept. A certificate is made anew when it is for other names, when it is 30 days
    or a third of its life from its end, and with --renew; the authority stays the same, so clients need nothing new.

    Run it as the user that the server runs as: private keys are readable by their owner alone. Then tell the running
    server with SIGHUP. Run daily without names, it renews in time.

    \b
    Example:
      homing cert --dir /etc/homing/tls ns.members.example 192.0.2.1 2001:db8::1
      homing cert --dir /etc/homing/tls && systemctl reload homing
      openssl x509 -in /etc/homing/tls/server.pem -noout -text
    """
    files = files_in(directory)
    try:
        before = facts(files)
        names, addresses = _sorted_out(subjects) if subjects else _as_before(before, directory)
        old = files.certificate_file.read_bytes() if before else b""
        ensure_certificates(directory, names, addresses, days=days, renew=renew)
        found = facts(files)
    except CertificateError as error:
        raise OperationError(str(error)) from None
    assert found is not None
    is_new = files.certificate_file.read_bytes() != old
    typer.echo(_as_json(files, found, is_new) if as_json else _as_text(files, found, is_new))


def _sorted_out(subjects: list[str]) -> tuple[list[str], list[str]]:
    """(host names, addresses)."""
    names: list[str] = []
    addresses: list[str] = []
    for subject in subjects:
        try:
            addresses.append(str(ipaddress.ip_address(subject.strip("[]"))))
        except ValueError:
            names.append(_host_name(subject))
    return names, addresses


def _host_name(text: str) -> str:
    try:
        name = to_text(from_text(text)).rstrip(".").lower()
    except ValueError as error:
        _refuse(text, str(error))
    labels = name.split(".")
    if not name.isascii() or not all(label.replace("-", "").replace("_", "").isalnum() for label in labels):
        _refuse(text, "write names as DNS has them, an international one as xn--...")
    return name


def _refuse(text: str, why: str) -> NoReturn:
    raise ConfigError(f"{text[:80]!r} is no host name and no address: {why}")


def _as_before(before: Facts | None, directory: Path) -> tuple[list[str], list[str]]:
    if before is None:
        raise ConfigError(f"there is no certificate in {directory} yet: say which names and addresses it is for")
    return before.names, before.addresses


def _as_json(files: CertificateFiles, found: Facts, is_new: bool) -> str:
    return json.dumps(
        {
            "ca_file": str(files.ca_file.absolute()),
            "certificate_file": str(files.certificate_file.absolute()),
            "key_file": str(files.key_file.absolute()),
            "names": found.names,
            "addresses": found.addresses,
            "ends": found.ends.isoformat(),
            "ca_ends": found.authority_ends.isoformat(),
            "is_new": is_new,
        }
    )


def _as_text(files: CertificateFiles, found: Facts, is_new: bool) -> str:
    state = "new" if is_new else "kept"
    return "\n".join(
        (
            f"certificate {files.certificate_file.absolute()}",
            f"  {state}, until {found.ends:%Y-%m-%d}, for {', '.join((*found.names, *found.addresses))}",
            f"key         {files.key_file.absolute()}",
            f"authority   {files.ca_file.absolute()}",
            f"  until {found.authority_ends:%Y-%m-%d}; clients trust this file",
        )
    )
