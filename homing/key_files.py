"""TSIG keys in the files of other programs: BIND's key statement, Knot DNS' key section.

key "alice.members.example." { algorithm hmac-sha256; secret "..."; };

key:
  - id: alice.members.example.
    algorithm: hmac-sha256
    secret: ...
"""

import base64
import binascii
import re
import stat
from pathlib import Path
from typing import Final

from protocol.name import fold, from_text, to_text
from protocol.tsig import MD5, Key, algorithm_from_text

MAX_OCTETS: Final = 64 * 1024
_COMMENT: Final = re.compile(r"/\*.*?\*/|(?://|#)[^\n]*", re.DOTALL)
_BIND_KEY: Final = re.compile(r'\bkey\s+(?:"([^"\s]+)"|([^\s"{;]+))\s*\{([^{}]*)\}\s*;')
_BIND_FIELD: Final = re.compile(r'\b(algorithm|secret)\s+(?:"([^"]*)"|([^\s";]+))\s*;')
_KNOT_ITEM: Final = re.compile(r"^\s*-?\s*(id|algorithm|secret)\s*:\s*[\"']?([^\"'\s#]+)[\"']?\s*(?:#.*)?$")


def read_key_file(path: Path) -> Key:
    """The one key in a file; `ValueError`, which tells nothing of the secret, for all else and for open files."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"{path} can be read by others: chmod 600 it")
        with path.open("rb") as file:
            octets = file.read(MAX_OCTETS + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if len(octets) > MAX_OCTETS:
        raise ValueError(f"{path} is too large for a key file")
    try:
        keys = keys_in(octets.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(keys) != 1:
        raise ValueError(f"{path} has {len(keys)} keys, not one")
    return keys[0]


def keys_in(text: str) -> list[Key]:
    """Every key in the text of a BIND or Knot DNS file, in order; `ValueError` for one that is not whole."""
    if _BIND_KEY.search(_COMMENT.sub(" ", text)):
        return _bind_keys(_COMMENT.sub(" ", text))
    return _knot_keys(text)


def _bind_keys(text: str) -> list[Key]:
    keys = []
    for match in _BIND_KEY.finditer(text):
        fields = {word: quoted or plain for word, quoted, plain in _BIND_FIELD.findall(match.group(3))}
        keys.append(_key(match.group(1) or match.group(2), fields))
    return keys


def _knot_keys(text: str) -> list[Key]:
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        match = _KNOT_ITEM.match(line)
        if match is None:
            continue
        word, value = match.groups()
        if word == "id":
            found.append({})
        if not found:
            raise ValueError(f"{word} before the id of a key")
        found[-1][word] = value
    return [_key(fields["id"], fields) for fields in found]


def _key(name: str, fields: dict[str, str]) -> Key:
    missing = {"algorithm", "secret"} - fields.keys()
    if missing:
        raise ValueError(f"key {name} has no {' and no '.join(sorted(missing))}")
    try:
        secret = base64.b64decode(fields["secret"], validate=True)
    except binascii.Error:
        raise ValueError(f"the secret of key {name} is not base64") from None
    if not secret:
        raise ValueError(f"the secret of key {name} is empty")
    return Key(fold(from_text(name)), algorithm_from_text(fields["algorithm"]), secret)


def key_json(key: Key) -> dict[str, str]:
    """Name, algorithm and secret in base64, as `--json` prints them."""
    algorithm = "hmac-md5" if key.algorithm is MD5 else key.algorithm.text  # tools know MD5 by its short name
    return {"name": to_text(key.name), "algorithm": algorithm, "secret": base64.b64encode(key.secret).decode()}


def bind_text(key: Key) -> str:
    """The key as BIND's tools read it from a file (`nsupdate -k`, `dig -k`), and named from an include."""
    text = key_json(key)
    return f'key "{text["name"]}" {{\n\talgorithm {text["algorithm"]};\n\tsecret "{text["secret"]}";\n}};\n'


def knot_text(key: Key) -> str:
    """The key as Knot DNS reads it from an include (`keymgr -t` prints it so)."""
    text = key_json(key)
    return f"key:\n  - id: {text['name']}\n    algorithm: {text['algorithm']}\n    secret: {text['secret']}\n"


def nsupdate_line(key: Key) -> str:
    """The command that uses the key at once."""
    text = key_json(key)
    return f"nsupdate -y {text['algorithm']}:{text['name']}:{text['secret']}"
