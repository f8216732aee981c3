"""One TOML file into one checked settings model: flag before environment before file before default.

Every problem is reported at once, one line each, as `FILE: [table].key: problem`. Relative paths in a file, that of a
SQLite URL included, count from the directory of the file: `--config` from elsewhere means the same database.
"""

import difflib
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

DATABASE_URL: Final = "HOMING_DATABASE_URL"
LOG_LEVEL: Final = "HOMING_LOG_LEVEL"
ENVIRONMENT: Final = {DATABASE_URL: ("database", "url"), LOG_LEVEL: ("log", "level")}
"""The only settings that the environment can give, and where they go."""
HIDDEN: Final = "(hidden)"

Settings = TypeVar("Settings", bound=BaseModel)
_Location = tuple[int | str, ...]

_SECRET_FILES: Final = re.compile(r"(^|_)(key|secret|password)_file$")
_SECRETS: Final = re.compile(r"(^|_)(secret|password|passphrase)$")
_URL_PASSWORD: Final = re.compile(r"(://[^:/@]*:).*@")
_SQLITE_FILE: Final = re.compile(r"(sqlite(?:\+\w+)?:///)(?![/:?]|file:|$)(.+)")
_LONGEST_VALUE: Final = 80


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are whole lines for the operator."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(
    model: type[Settings],
    file: Path,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
) -> Settings:
    """Read `file` as `model`. `flags` are `{table: {key: value}}` from the command line, None values left out.

    `environment` (default `os.environ`) is looked at for the names in `ENVIRONMENT` only, and only for tables that the
    model has. `ConfigError` with every problem.
    """
    environment = os.environ if environment is None else environment
    directory = file.parent.absolute()
    data = _anchored(model, _read(file), directory)
    sources: dict[_Location, str] = {}
    for variable, (table, key) in ENVIRONMENT.items():
        value = environment.get(variable)
        if value and _put(model, data, table, key, value):
            sources[table, key] = variable
    for table, values in (flags or {}).items():
        for key, given in values.items():
            if given is not None and _put(model, data, table, key, given):
                sources[table, key] = f"--{table}-{key}".replace("_", "-")
    try:
        settings = model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        raise ConfigError(*(_problem(model, file, sources, item) for item in details)) from None
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{file}: cannot read it: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (octet {error.start})") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, separator, place = str(error).removesuffix(")").rpartition(" (at ")
        place = place.replace("end of document", f"line {text.count(chr(10)) + 1}, end of file")
        where, what = (place, reason) if separator else ("not TOML", str(error))
        raise ConfigError(f"{file}: {where}: {what}") from None


def _put(model: type[BaseModel], data: dict[str, Any], table: str, key: str, value: object) -> bool:
    """Set one key unless the model has no such table or the file put something else in its place."""
    section = data.get(table, {})
    if table not in model.model_fields or not isinstance(section, dict):
        return False
    data[table] = {**section, key: value}
    return True


# --- problems in words ---


def _problem(model: type[BaseModel], file: Path, sources: Mapping[_Location, str], detail: ErrorDetails) -> str:
    location = detail["loc"]
    source = sources.get(location[:2])
    where = source or f"{file}: {_place(model, location, isinstance(detail['input'], dict))}"
    return f"{where}: {_reason(model, location, detail)}"


def _place(model: type[BaseModel], location: _Location, is_table: bool) -> str:
    """`[table.below].key[2]`; a bare `key` at the top of the file."""
    if not location:
        return "(whole file)"
    tables = 0
    while tables < len(location) and _section(model, location[: tables + 1]) and isinstance(location[tables], str):
        tables += 1
    if tables == 0 and (len(location) > 1 or is_table):
        tables = 1
    text = f"[{'.'.join(map(str, location[:tables]))}]" if tables else ""
    for part in location[tables:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _reason(model: type[BaseModel], location: _Location, detail: ErrorDetails) -> str:
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        return _unknown(model, location)
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a table"
    reason = message.replace("Input should be", "must be").replace("Value should be", "must be")
    value = detail["input"]
    key = next((part for part in reversed(location) if isinstance(part, str)), "")
    shown = isinstance(value, str | int | float | bool) and not _SECRETS.search(key) and "url" not in key
    return f"{reason}, not {_short(value)}" if shown else reason


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def _unknown(model: type[BaseModel], location: _Location) -> str:
    *tables, key = location
    section = _section(model, tuple(tables))
    if section is None:
        return "unknown key"
    what = "unknown key" if tables else "unknown table or key"
    near = difflib.get_close_matches(str(key), section.model_fields, n=1)
    if near:
        return f"{what}, did you mean {near[0]!r}?"
    homes = [name for name, part in _tables(model) if str(key) in part.model_fields and (name,) != location[:1]]
    if homes:
        return f"{what}, does it belong in [{homes[0]}]?"
    return f"{what} (known: {', '.join(section.model_fields)})"


def _section(model: type[BaseModel], location: _Location) -> type[BaseModel] | None:
    """The model of the table at `location`, through lists of tables as well."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            return None
        current = _type_in(current.model_fields[part].annotation, BaseModel)
    return current


def _type_in(annotation: object, wanted: type[Any]) -> Any:
    """The first class below `wanted` that an annotation such as `tuple[Model, ...] | None` is made of."""
    if isinstance(annotation, type) and issubclass(annotation, wanted):
        return annotation
    return next((found for part in get_args(annotation) if (found := _type_in(part, wanted)) is not None), None)


def _tables(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        section = _type_in(field.annotation, BaseModel)
        if section is not None:
            yield name, section


# --- paths ---


def _anchored(model: type[BaseModel], data: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The tables with relative paths counted from `directory`. Before validation: that reads some of the files."""
    tables = {
        name: _anchored_value(field.annotation, data[name], directory)
        for name, field in model.model_fields.items()
        if name in data
    }
    database = _section(model, ("database",))
    if database is not None and "url" in database.model_fields:
        section = tables.get("database", {})
        if isinstance(section, dict):
            url = section.get("url", database.model_fields["url"].default)
            if isinstance(url, str):
                tables["database"] = {**section, "url": _anchor_url(url, directory)}
    return {**data, **tables}


def _anchored_value(annotation: object, value: Any, directory: Path) -> Any:
    if isinstance(value, list):
        return [_anchored_value(annotation, item, directory) for item in value]
    section = _type_in(annotation, BaseModel)
    if isinstance(value, dict) and section is not None:
        return _anchored(section, value, directory)
    if isinstance(value, str) and value and _type_in(annotation, Path):
        return str(directory / value)
    return value


def _anchor_url(url: str, directory: Path) -> str:
    match = _SQLITE_FILE.fullmatch(url)
    return f"{match[1]}{directory / match[2]}" if match else url


# --- secrets ---


def open_secret_files(settings: BaseModel) -> list[str]:
    """A line for each secret file that others than its owner may read; missing files are not its business."""
    return [
        f"{path} ({place}) is open to others (mode {mode:04o}): chmod 600 it"
        for place, path in _secret_files(settings, "")
        if (mode := _mode(path)) is not None and mode & 0o077
    ]


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _secret_files(settings: BaseModel, table: str) -> Iterator[tuple[str, Path]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _secret_files(value, name)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, BaseModel):
                    yield from _secret_files(item, name)
        elif isinstance(value, Path) and _SECRET_FILES.search(name):
            yield (f"[{table}].{name}" if table else name), value


def hide_url_password(url: str) -> str:
    """A database URL that may be shown."""
    return _URL_PASSWORD.sub(rf"\1{HIDDEN}@", url)


# --- the effective configuration ---


def effective(settings: BaseModel) -> dict[str, Any]:
    """Every setting with its value as TOML and JSON know values, secrets hidden; None where nothing is set."""
    return {name: _plain(name, getattr(settings, name)) for name in type(settings).model_fields}


def _plain(name: str, value: Any) -> Any:
    if value is not None and _SECRETS.search(name):
        return HIDDEN
    if isinstance(value, BaseModel):
        return effective(value)
    if isinstance(value, list) or type(value) is tuple:
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return hide_url_password(str(value))


def to_toml(values: Mapping[str, Any]) -> str:
    """Write what `effective` returned as TOML; keys without a value become comments."""
    return "\n".join(_toml_table("", values)).lstrip("\n") + "\n"


def _toml_table(prefix: str, table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if value is None:
            yield f"# {name} is not set"
        elif not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{name} = {_toml_value(value)}"
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{prefix}{name}]"
            yield from _toml_table(f"{prefix}{name}.", value)
        elif _is_tables(value):
            for item in value:
                yield f"\n[[{prefix}{name}]]"
                yield from _toml_table(f"{prefix}{name}.", item)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return json.dumps(value)
