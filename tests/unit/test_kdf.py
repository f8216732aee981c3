"""Keys from passwords: published form, bounds, and a second implementation of scrypt."""

import hashlib
import json

import pytest

from protocol.name import from_text, to_text
from server import kdf
from server.kdf import KdfParameters

SALT = bytes(range(16))


@pytest.mark.rfc("6281", "7.2")
def test_the_secret_is_plain_scrypt_of_password_and_salt() -> None:
    parameters = KdfParameters(SALT, n=1 << 14)
    wanted = hashlib.scrypt(b"correct horse", salt=SALT, n=1 << 14, r=8, p=1, dklen=32, maxmem=1 << 26)
    assert kdf.derive("correct horse", parameters) == wanted
    assert kdf.derive("correct horsf", parameters) != wanted


def test_a_composed_and_a_decomposed_letter_are_one_password() -> None:
    parameters = KdfParameters(SALT, n=1 << 14)
    assert kdf.derive("Passwort-\u00e4", parameters) == kdf.derive("Passwort-a\u0308", parameters)


def test_a_short_password_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        kdf.derive("1234567", KdfParameters(SALT))


def test_the_published_form_comes_back() -> None:
    parameters = KdfParameters(SALT)
    assert parameters.to_text() == "v=1 kdf=scrypt n=32768 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw=="
    assert kdf.parse(parameters.to_text()) == parameters
    assert kdf.parse_txt(kdf.txt_rdata(parameters)) == parameters
    text = parameters.to_text().encode()
    split = bytes((20,)) + text[:20] + bytes((len(text) - 20,)) + text[20:]
    assert kdf.parse_txt(split) == parameters
    assert json.loads(parameters.to_json())["n"] == 32768
    owner = kdf.owner_name(b"alice", from_text("members.example."))
    assert to_text(owner) == "alice._homing-kdf.members.example."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v=2 kdf=scrypt n=32768 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=argon2 n=32768 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=32769 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=2 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=2097152 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=32768 r=99 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=32768 r=8 p=0 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=32768 r=8 p=1 salt=***",
        "v=1 kdf=scrypt n=32768 r=8 p=1 salt=AAEC",
        "v=1 kdf=scrypt n=32768 r=8 p=1",
        "v=1 kdf=scrypt n=-32768 r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
        "v=1 kdf=scrypt n=" + "9" * 5000 + " r=8 p=1 salt=AAECAwQFBgcICQoLDA0ODw==",
    ],
)
def test_forms_that_cost_too_much_or_say_too_little_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"scrypt|key derivation"):
        kdf.parse(text)
