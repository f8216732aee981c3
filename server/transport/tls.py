"""The server's side of TLS as octets in, octets out (RFC 7858), and the context that all connections share.

The handshake is ours to begin and to end: a connection costs no TLS state before its first octet, and its limits hold
during the handshake as they do afterwards. TLS 1.2 and later; ALPN "dot" is offered and not demanded; early data
(0-RTT) is never taken, since an update in it could be replayed.
"""

import contextlib
import ssl
from pathlib import Path
from typing import Final

_CHUNK: Final = 65536


def server_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """Read certificate and key; `ValueError` with a plain sentence when they cannot be used."""
    for file in (certificate_file, key_file):
        if not file.is_file():
            raise ValueError(f"no such file: {file}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["dot"])
    try:
        context.load_cert_chain(certificate_file, key_file, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ValueError(f"cannot use certificate {certificate_file} with key {key_file}: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


class TlsLayer:
    """One connection's TLS. `ssl.SSLError` from any of its methods ends the connection; what is to be sent still is."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_side=True)
        self.is_ready = False
        """The handshake is done."""
        self.has_ended = False
        """The peer has said that it sends no more."""

    def receive(self, data: bytes) -> bytes:
        """Take octets of the peer; what they say in the clear, b"" when that is nothing yet."""
        self._in.write(data)
        parts: list[bytes] = []
        try:
            if not self.is_ready:
                self._object.do_handshake()
                self.is_ready = True
            while part := self._object.read(_CHUNK):
                parts.append(part)
            self.has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        return b"".join(parts)

    def send(self, data: bytes) -> bytes:
        """Octets that say this to the peer."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._object.write(rest) :]
        return self.take()

    def take(self) -> bytes:
        """Octets for the peer that nobody asked for: handshake, alerts."""
        return self._out.read() if self._out.pending else b""

    def close(self) -> bytes:
        """Octets that say that we send no more; nothing before the handshake is done."""
        if self.is_ready:
            with contextlib.suppress(ssl.SSLError):  # the peer has not answered in kind, and need not
                self._object.unwrap()
        return self.take()

    def facts(self) -> tuple[str, str]:
        """TLS version, and ALPN protocol or ""."""
        return self._object.version() or "", self._object.selected_alpn_protocol() or ""
