"""A private certificate authority and one server certificate, for DNS over TLS without a public CA.

ECDSA P-256. The authority lives ten years and the certificate 825 days, the longest that Apple's systems accept, or
fewer; it is made again when the names change and 30 days, or a third of its life, before it ends. Private keys are
files of mode 0600.
"""

import ipaddress
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825
RENEW_DAYS: Final = 30
_BACKDATED: Final = timedelta(hours=1)  # peers' clocks run behind


class CertificateError(Exception):
    """The certificates cannot be read or written; the text is one plain line for the operator."""


class CertificateFiles(NamedTuple):
    """Where the PEM files are. Peers need `ca_file`, the server the other two."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True)
class _Identity:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Facts(NamedTuple):
    """Of a server certificate and its authority; times in UTC."""

    names: list[str]
    addresses: list[str]
    ends: datetime
    authority_ends: datetime


def files_in(directory: Path) -> CertificateFiles:
    """Where `ensure_certificates` keeps them."""
    return CertificateFiles(directory / "ca.pem", directory / "server.pem", directory / "server-key.pem")


def facts(files: CertificateFiles) -> Facts | None:
    """What is in the files; None when there is no certificate that can be read."""
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
        authority = x509.load_pem_x509_certificate(files.ca_file.read_bytes())
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except FileNotFoundError:
        return None
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateError(f"cannot read {files.certificate_file} or {files.ca_file}: {error}") from None
    except OSError as error:
        raise CertificateError(f"cannot read {error.filename}: {error.strerror}") from None
    return Facts(
        present.get_values_for_type(x509.DNSName),
        [str(address) for address in present.get_values_for_type(x509.IPAddress)],
        certificate.not_valid_after_utc,
        authority.not_valid_after_utc,
    )


def ensure_certificates(
    directory: Path,
    names: Iterable[str],
    addresses: Iterable[str],
    *,
    days: int = CERTIFICATE_DAYS,
    renew: bool = False,
    now: datetime | None = None,
) -> CertificateFiles:
    """Make sure that `directory` holds an authority and a certificate for exactly these host names and addresses.

    A new certificate lives `days`; `renew` makes one whatever there is.
    An authority that is there is kept, for peers trust it; one that is half there or damaged is an error, not a reason
    for a new one. `CertificateError` for that and for files that cannot be written.
    """
    now = now or datetime.now(UTC)
    wanted = _subject_names(names, addresses)
    files = files_in(directory)
    authority_key = directory / "ca-key.pem"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = _read_authority(files.ca_file, authority_key)
        if authority is None or _ends_soon(authority.certificate, now):
            authority = _make_authority(now)
            _write(authority_key, _key_pem(authority.key), 0o600)
            _write(files.ca_file, _certificate_pem(authority.certificate), 0o644)
        present = _read(files.certificate_file, files.key_file)
        if renew or present is None or not _still_good(present.certificate, authority.certificate, wanted, now):
            made = _make_certificate(authority, wanted, now, days)
            _write(files.key_file, _key_pem(made.key), 0o600)
            _write(files.certificate_file, _certificate_pem(made.certificate), 0o644)
        for file in (authority_key, files.key_file):
            file.chmod(0o600)
    except OSError as error:
        raise CertificateError(f"cannot keep certificates in {directory}: {error.strerror}") from None
    return files


def _subject_names(names: Iterable[str], addresses: Iterable[str]) -> list[x509.GeneralName]:
    """Sorted and without repetition; `ValueError` when there are none."""
    found: list[x509.GeneralName] = [
        x509.DNSName(name) for name in sorted({name.rstrip(".").lower() for name in names})
    ]
    found += [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(set(addresses))]
    if not found:
        raise ValueError("a certificate needs a name or an address")
    return found


def _read_authority(certificate_file: Path, key_file: Path) -> _Identity | None:
    if not certificate_file.exists() and not key_file.exists():
        return None
    authority = _read(certificate_file, key_file)
    if authority is None:
        raise CertificateError(
            f"{certificate_file} and {key_file} are not a certificate and its key: "
            "restore them, or remove both and hand out the new authority"
        )
    return authority


def _read(certificate_file: Path, key_file: Path) -> _Identity | None:
    """The pair; None when one is missing, damaged, or not of the other."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return _Identity(certificate, key)


def _ends_soon(certificate: x509.Certificate, now: datetime) -> bool:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now < min(timedelta(days=RENEW_DAYS), life / 3)


def _still_good(
    certificate: x509.Certificate, authority: x509.Certificate, wanted: list[x509.GeneralName], now: datetime
) -> bool:
    if _ends_soon(certificate, now) or certificate.not_valid_before_utc > now:
        return False
    try:
        certificate.verify_directly_issued_by(authority)
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return list(present) == wanted


def _make_authority(now: datetime) -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    # a number in the name tells one authority from the next in a peer's list of them
    name = _name(f"homing private CA {secrets.token_hex(4)}")
    certificate = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _make_certificate(authority: _Identity, wanted: list[x509.GeneralName], now: datetime, days: int) -> _Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + timedelta(days=days) - _BACKDATED, authority.certificate.not_valid_after_utc)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(authority.certificate.subject, _name("homing server"), key.public_key(), now, until)
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _Identity(certificate, key)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    issuer: x509.Name, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(file: Path, content: bytes, mode: int) -> None:
    """Put a whole file in place at once, never readable by more than `mode` says."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as target:
            target.write(content)
            os.fchmod(descriptor, mode)
            target.flush()
            os.fsync(descriptor)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
