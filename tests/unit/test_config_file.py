"""Configuration files: order of sources, every problem at once, paths, secrets."""

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from client_stub.config import ClientConfig
from gateway.config import GatewayConfig
from homing.config_file import (
    ConfigError,
    effective,
    hide_url_password,
    load,
    open_secret_files,
    to_toml,
)
from server.config import ServerSettings


def write(directory: Path, text: str) -> Path:
    file = directory / "homing.toml"
    file.write_text(text)
    return file


def server(file: Path, **environment: str) -> ServerSettings:
    return load(ServerSettings, file, environment=environment)


def problems(file: Path, model: type[BaseModel] = ServerSettings, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(model, file, environment=environment)
    return [line.removeprefix(f"{file}: ") for line in caught.value.problems]


def test_every_problem_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        surprise = 1
        [zone]
        nmae = "members.example."
        [dns]
        listen = ["127.0.0.1:5300", "localhost"]
        tcp_idle_seconds = -1
        [lease]
        minimum_seconds = "soon"
        [members]
        default = "secret"
        """,
    )
    assert sorted(problems(file)) == [
        "[dns].listen[1]: 'localhost' is not ADDRESS:PORT",
        "[dns].tcp_idle_seconds: must be greater than 0, not -1",
        '[lease].minimum_seconds: must be a valid integer, unable to parse string as an integer, not "soon"',
        "[members].default: must be 'open' or 'private', not \"secret\"",
        "[zone].nmae: unknown key, did you mean 'name'?",
        f"surprise: unknown table or key (known: {', '.join(ServerSettings.model_fields)})",
    ]


def test_each_line_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[zone]\nnmae = 1\n[dns]\nrate_limit = -4\n")
    with pytest.raises(ConfigError) as caught:
        load(ServerSettings, file, environment={})
    assert len(caught.value.problems) == 2
    assert all(line.startswith(f"{file}: [") for line in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[dsn]\nlisten = []", "[dsn]: unknown table or key, did you mean 'dns'?"),
        ("dsn = 1", "dsn: unknown table or key, did you mean 'dns'?"),
        ("[zone]\nlisten_tls = []", "[zone].listen_tls: unknown key, does it belong in [dns]?"),
        ("dns = 4", "[dns]: must be a table"),
        ("[dns]\nlisten_tls = ['127.0.0.1:853']", "[dns]: listen_tls needs certificate_file and key_file"),
        ("[zone]\nname = 'a..b'", None),
        ("[zone]\nname =", "line 2, end of file: Invalid value"),
        ("[zone", "line 1, end of file: Expected ']' at the end of a table declaration"),
    ],
)
def test_problem_in_words(tmp_path: Path, text: str, problem: str | None) -> None:
    found = problems(write(tmp_path, text))
    assert len(found) == 1
    assert found[0].startswith("[zone].name: ") if problem is None else found == [problem]


@pytest.mark.rfc("8490", "6.5.2")
@pytest.mark.rfc("8490", "7.1")
def test_an_interval_below_ten_seconds_is_no_configuration(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "[push]\nkeepalive_seconds = 9\n"))
    assert [line.partition(": ")[0] for line in found] == ["[push].keepalive_seconds"]
    least = load(ServerSettings, write(tmp_path, "[push]\nkeepalive_seconds = 10\n"), environment={})
    assert least.push.keepalive_seconds == 10


def test_missing_and_wrong_keys_in_lists_of_tables(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [natpmp]
        listen = ["127.0.0.1:5351"]
        [state]
        file = "gateway.sqlite"
        [[static]]
        transport = "tcp"
        external_prot = 80
        internal = "127.0.0.1:80"
        """,
    )
    assert sorted(problems(file, GatewayConfig)) == [
        "[static][0].external_port: is missing",
        "[static][0].external_prot: unknown key, did you mean 'external_port'?",
    ]
    assert problems(write(tmp_path, ""), GatewayConfig) == ["[state]: is missing"]
    (outside_only,) = problems(write(tmp_path, "[state]\nfile = 'state'"), GatewayConfig)
    assert outside_only == "(whole file): name the inside: addresses in [natpmp] listen, or interfaces in [lan]"


def test_unreadable_files(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == ["cannot read it: No such file or directory"]
    assert problems(tmp_path) == ["cannot read it: Is a directory"]
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"[zone]\nname = '\xff'")
    assert problems(binary) == ["not UTF-8 text (octet 15)"]


def test_flag_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = write(tmp_path, "[log]\nlevel = 'warning'\n")
    assert server(write(tmp_path, "")).log.level == "info"
    write(tmp_path, "[log]\nlevel = 'warning'\n")
    assert server(file).log.level == "warning"
    assert server(file, HOMING_LOG_LEVEL="error").log.level == "error"
    flags = {"log": {"level": "debug"}}
    assert load(ServerSettings, file, environment={"HOMING_LOG_LEVEL": "error"}, flags=flags).log.level == "debug"
    unset: dict[str, dict[str, object]] = {"log": {"level": None}}
    assert load(ServerSettings, file, environment={}, flags=unset).log.level == "warning"


def test_other_environment_is_not_looked_at(tmp_path: Path) -> None:
    assert server(write(tmp_path, ""), HOMING_ZONE_NAME="x.example.", ZONE="y.").zone.name == "members.example."


def test_a_problem_from_the_environment_names_the_variable(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    with pytest.raises(ConfigError) as caught:
        server(file, HOMING_LOG_LEVEL="loud")
    assert caught.value.problems == ("HOMING_LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error', not \"loud\"",)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite+aiosqlite:///data/h.db", "sqlite+aiosqlite:///{dir}/data/h.db"),
        ("sqlite+aiosqlite:////var/lib/h.db", "sqlite+aiosqlite:////var/lib/h.db"),
        ("sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///:memory:"),
        ("sqlite+aiosqlite:///file:h.db?uri=true", "sqlite+aiosqlite:///file:h.db?uri=true"),
        ("sqlite+aiosqlite://", "sqlite+aiosqlite://"),
        ("postgresql+asyncpg://u:p@host/homing", "postgresql+asyncpg://u:p@host/homing"),
    ],
)
def test_a_sqlite_file_counts_from_the_configuration(tmp_path: Path, url: str, expected: str) -> None:
    file = write(tmp_path, f"[database]\nurl = '{url}'\n")
    assert server(file).database.url == expected.format(dir=tmp_path)


def test_default_and_environment_urls(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    assert server(file).database.url == f"sqlite+aiosqlite:///{tmp_path}/homing.db"
    from_environment = server(file, HOMING_DATABASE_URL="sqlite+aiosqlite:///here.db")
    assert from_environment.database.url == "sqlite+aiosqlite:///here.db"


def test_paths_count_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = write(
        tmp_path / "etc",
        "[database]\nmaster_key_file = '../master.key'\n[dns]\ncertificate_file = '/tls/c.pem'\nkey_file = 'k.pem'\n",
    )
    settings = server(file)
    assert settings.database.master_key_file == tmp_path / "etc" / "../master.key"
    assert settings.dns.certificate_file == Path("/tls/c.pem")
    assert settings.dns.key_file == tmp_path / "etc" / "k.pem"


def test_a_client_reads_its_secret_beside_its_file(tmp_path: Path) -> None:
    text = """
        [machine]
        name = "mac"
        [member]
        domain = "alice.members.example."
        [member.key]
        name = "alice.members.example."
        secret_file = "alice.secret"
        [dns]
        server = "127.0.0.1:5300"
        """
    file = write(tmp_path, text)
    (found,) = problems(file, ClientConfig)
    assert found == f"[member.key]: {tmp_path}/alice.secret: No such file or directory"
    (tmp_path / "alice.secret").write_text("c2VjcmV0\n")
    (tmp_path / "alice.secret").chmod(0o600)
    settings = load(ClientConfig, file, environment={})
    assert settings.member.key.load().secret == b"secret"
    assert '\n[member.key]\nname = "alice.members.example."' in to_toml(effective(settings))
    assert problems(write(tmp_path, text.replace("secret_file", "secretfile")), ClientConfig) == [
        "[member.key].secretfile: unknown key, did you mean 'secret_file'?"
    ]


def test_secret_files_open_to_others_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, "[database]\nmaster_key_file = 'm'\n[dns]\nkey_file = 'k'\ncertificate_file = 'c'\n")
    settings = server(file)
    assert open_secret_files(settings) == []  # none exists yet
    for name, mode in (("m", 0o640), ("k", 0o604), ("c", 0o644)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    assert open_secret_files(settings) == [
        f"{tmp_path}/m ([database].master_key_file) is open to others (mode 0640): chmod 600 it",
        f"{tmp_path}/k ([dns].key_file) is open to others (mode 0604): chmod 600 it",
    ]
    for name in ("m", "k"):
        (tmp_path / name).chmod(0o600)
    assert open_secret_files(settings) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+asyncpg://homing:s3c:r@t@db.example/h", "postgresql+asyncpg://homing:(hidden)@db.example/h"),
        ("postgresql+asyncpg://homing@db.example/h", "postgresql+asyncpg://homing@db.example/h"),
        ("sqlite+aiosqlite:////var/a:b@c.db", "sqlite+aiosqlite:////var/a:b@c.db"),
    ],
)
def test_passwords_in_urls_are_hidden(url: str, shown: str) -> None:
    assert hide_url_password(url) == shown


def test_a_bad_secret_is_not_quoted(tmp_path: Path) -> None:
    class Section(BaseModel):
        password: int = 0
        url: int = 0

    class Model(BaseModel):
        login: Section = Section()

    file = write(tmp_path, "[login]\npassword = 'hunter2'\nurl = 'x://u:hunter2@h'\n")
    found = problems(file, Model)
    assert len(found) == 2
    assert "hunter2" not in "\n".join(found)
    assert effective(Model(login=Section(password=12345)))["login"]["password"] == "(hidden)"


def test_the_effective_configuration_reads_back_as_it_was(tmp_path: Path) -> None:
    file = write(tmp_path, "[zone]\naddresses = ['192.0.2.1', '2001:db8::1']\n[llq]\nquiet_seconds = 0.25\n")
    settings = server(file)
    text = to_toml(effective(settings))
    assert "# master_key_file is not set" in text
    assert load(ServerSettings, write(tmp_path, text), environment={}) == settings


def test_lists_of_tables_read_back_too(tmp_path: Path) -> None:
    source = """
        [natpmp]
        listen = ["127.0.0.1:5351"]
        [state]
        file = "/g.sqlite"
        [[static]]
        transport = "tcp"
        external_port = 8080
        internal = "127.0.0.1:80"
        """
    settings = load(GatewayConfig, write(tmp_path, source), environment={})
    text = to_toml(effective(settings))
    assert load(GatewayConfig, write(tmp_path, text), environment={}) == settings


@pytest.mark.parametrize("value", ['quo"te', "back\\slash", "new\nline", "naïve ☃ 🏠", "\x7f\x01"])
def test_any_text_is_written_as_toml(value: str) -> None:
    values: dict[str, Any] = {"top": value, "table": {"list": [value, "x"], "flag": True, "none": None}}
    assert tomllib.loads(to_toml(values)) == {"top": value, "table": {"list": [value, "x"], "flag": True}}


def test_a_file_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root reads anything: a dangling link stands in for what cannot be opened
        (tmp_path / "homing.toml").symlink_to(tmp_path / "nowhere")
        assert problems(tmp_path / "homing.toml") == ["cannot read it: No such file or directory"]
    else:
        file = write(tmp_path, "")
        file.chmod(0)
        assert problems(file) == ["cannot read it: Permission denied"]
