"""Who signed it: TSIG verification as a stage of the pipeline (RFC 8945 §5.2)."""

from protocol.constants import Opcode, TsigError
from protocol.errors import DecodeError
from protocol.name import to_text
from protocol.tsig import MD5, decode_tsig, verify
from server.keyring import Keyring
from server.replays import Replays
from server.request import Authenticated, Decoded, SignatureRefusal


def authenticate(
    decoded: Decoded, keyring: Keyring, replays: Replays, *, unix: int, allow_md5: bool, minimum_mac: int
) -> Authenticated:
    """Verify the request's TSIG when it has one. `DecodeError` (FORMERR) for one that cannot be read.

    `replays` is asked for updates alone: a question that is asked again changes nothing.
    """
    message = decoded.message
    if message.tsig is None:
        return Authenticated(decoded, None, None)
    tsig = decode_tsig(message.tsig, message.wire)
    if tsig.error:
        raise DecodeError("TSIG error field set in a request", message.tsig.offset)
    principal = keyring.find(tsig.key_name)
    if principal is not None and principal.key.algorithm is MD5 and not allow_md5:
        principal = None
    verdict = verify(message, tsig, principal.key if principal else None, now=unix, minimum_mac=minimum_mac)
    error, reason = verdict.error, f"{verdict.error.name} for key {to_text(tsig.key_name)}"
    if (
        error in (TsigError.NOERROR, TsigError.BADTRUNC)
        and message.header.opcode == Opcode.UPDATE
        and replays.is_stale(tsig)
    ):
        error, reason = TsigError.BADTIME, f"BADTIME for key {to_text(tsig.key_name)}: later ones came before"
    if error == TsigError.NOERROR:
        keyring.note_use(tsig.key_name, unix)
        return Authenticated(decoded, principal, tsig)
    raise SignatureRefusal(error, tsig, principal if verdict.is_signable else None, reason)
