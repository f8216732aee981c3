"""Secrets at rest: a master key file of the operator's, and AES-256-GCM over each TSIG secret.

    sealed: version u8 = 1 | nonce 12 octets | ciphertext and tag

The key's name is the associated data, so a sealed secret moved to another row does not open.
"""

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.store.api import StoreError

MASTER_KEY_OCTETS: Final = 32
_VERSION: Final = b"\x01"
_NONCE_OCTETS: Final = 12


@dataclass(frozen=True, slots=True)
class Secret:
    """Octets that never show in `repr` or in text; `reveal` says where they are used."""

    _octets: bytes = field(repr=False)

    def reveal(self) -> bytes:
        return self._octets

    def __str__(self) -> str:
        return "Secret(hidden)"


def load_master_key(path: Path, *, create: bool) -> Secret:
    """Read the master key file, or make one of mode 0600 when it is missing and `create` is set.

    `StoreError` when it cannot be read or made, has not 32 octets, is no plain file, or others may read it.
    """
    if create:
        try:
            _create(path)
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(f"cannot create master key file {path}: {error.strerror}") from None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StoreError(f"master key file {path} is missing: without it no key in the database can be used") from None
    except OSError as error:
        raise StoreError(f"cannot read master key file {path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"master key file {path} is not a plain file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise StoreError(f"master key file {path} is open to others (mode {mode:04o}): chmod 600 it")
        octets = os.read(descriptor, MASTER_KEY_OCTETS + 1)
    finally:
        os.close(descriptor)
    if len(octets) != MASTER_KEY_OCTETS:
        raise StoreError(f"master key file {path} has not {MASTER_KEY_OCTETS} octets")
    return Secret(octets)


def _create(path: Path) -> None:
    """Write the whole file under another name first: a second process never reads half a key, nor replaces one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(secrets.token_bytes(MASTER_KEY_OCTETS))
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)  # fails when the name is taken, as O_EXCL does
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Sealer:
    """Seals and opens secrets with one master key."""

    def __init__(self, master_key: Secret) -> None:
        self._cipher = AESGCM(master_key.reveal())

    def __repr__(self) -> str:
        return "Sealer()"

    def seal(self, name: bytes, secret: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_OCTETS)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, name)

    def open(self, name: bytes, sealed: bytes) -> bytes:
        """The secret of key `name`; `StoreError` when this master key did not seal it for that name."""
        if sealed[:1] != _VERSION:
            raise StoreError("a stored key is sealed in a form this version does not know")
        body = 1 + _NONCE_OCTETS
        try:
            return self._cipher.decrypt(sealed[1:body], sealed[body:], name)
        except (InvalidTag, ValueError):
            raise StoreError(
                "a stored key does not open: the master key file is not the one it was sealed with"
            ) from None
