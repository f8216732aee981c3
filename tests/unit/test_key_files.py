"""Key files of BIND and Knot DNS, as their own tools write them."""

import base64
from pathlib import Path

import pytest

from homing.key_files import bind_text, keys_in, read_key_file
from protocol.name import from_text
from protocol.tsig import SHA256, Key, algorithm_from_text

SECRET = b"0123456789abcdef0123456789abcdef"
TEXT = base64.b64encode(SECRET).decode()
KEY = Key(from_text("alice.members.example."), SHA256, SECRET)


def test_our_own_key_file_is_read_back() -> None:
    assert keys_in(bind_text(KEY)) == [KEY]


@pytest.mark.parametrize(
    "text",
    [
        f'key "alice.members.example" {{\n\talgorithm hmac-sha256;\n\tsecret "{TEXT}";\n}};\n',  # tsig-keygen
        f"# hmac-sha256:alice.members.example:{TEXT}\nkey:\n  - id: alice.members.example\n"
        f"    algorithm: hmac-sha256\n    secret: {TEXT}\n",  # keymgr -t
        f"/* mine */ key Alice.Members.Example. {{ secret {TEXT}; // here\n algorithm hmac-sha256; }};",
    ],
)
def test_files_of_other_programs(text: str) -> None:
    assert keys_in(text) == [KEY]


def test_several_keys_in_one_file() -> None:
    more = f"key:\n  - id: a.\n    algorithm: hmac-sha256\n    secret: {TEXT}\n"
    more += f"  - id: b.\n    algorithm: hmac-sha512\n    secret: {TEXT}\n"
    assert [(key.name, key.algorithm) for key in keys_in(more)] == [
        (b"\x01a\0", SHA256),
        (b"\x01b\0", algorithm_from_text("hmac-sha512")),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 keys"),
        ('key "a." { algorithm hmac-sha256; };', "no secret"),
        (f'key "a." {{ secret "{TEXT}"; }};', "no algorithm"),
        ('key "a." { algorithm hmac-sha256; secret "???"; };', "not base64"),
        (f'key "a." {{ algorithm hmac-rot13; secret "{TEXT}"; }};', "hmac-rot13"),
        (f"algorithm: hmac-sha256\nsecret: {TEXT}\n", "before the id"),
        ("\0" * 70000, "too large"),
    ],
)
def test_what_is_no_key_file_is_told_without_the_secret(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ValueError, match=words) as caught:
        read_key_file(file)
    assert TEXT not in str(caught.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(bind_text(KEY))
    file.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        read_key_file(file)
    with pytest.raises(ValueError, match="No such file"):
        read_key_file(tmp_path / "none")
