"""The settings of `rockbed serve`: from where they come, and every problem with them at once."""

import json
import logging
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rockbed import InvalidConfig
from rockbed.server.cli import app
from rockbed.server.daemon_logs import JsonLines
from rockbed.server.daemon_settings import Settings, load
from rockbed.server.limits import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rockbed.toml"
    path.write_text('data = "from-file"\nmemory_budget = "2GiB"\nttl = 60\nread_only = true\nworkers = 3\n')
    return path


def test_a_flag_counts_before_the_environment_and_that_before_the_file(file: Path) -> None:
    environment = {"ROCKBED_TTL": "70", "ROCKBED_WORKERS": "4", "ROCKBED_READ_ONLY": "false", "HOME": "/x"}
    found = load(file, environment, {"workers": "5", "keys_max": None})
    settings = found.settings
    assert (settings.data, settings.memory_budget, settings.ttl) == (Path("from-file"), 2 << 30, 70.0)
    assert (settings.read_only, settings.workers, settings.keys_max) == (False, 5, 1 << 22)
    names = ("data", "ttl", "workers", "keys_max")
    assert [found.sources[name] for name in names] == ["file", "environment", "flag", "default"]
    assert settings.store().memory_budget == 2 << 30
    assert settings.server().workers == 5


def test_every_limit_is_a_setting() -> None:
    wanted = Limits(
        message_bytes_max=1 << 20,
        keys_max=3,
        push_bytes_max=1 << 21,
        kept_bytes_max=1 << 19,
        kept_s=2.5,
        shared_bytes_max=0,
    )
    assert all(getattr(wanted, each.name) != each.default for each in fields(Limits))
    flags = {each.name: str(getattr(wanted, each.name)) for each in fields(Limits)}
    assert load(None, {}, {"data": "x", **flags}).settings.server().limits == wanted


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("64KiB", 65_536), ("64 kib", 65_536), ("3MB", 3_000_000), ("1G", 10**9)]
)
def test_bytes_are_written_as_people_do(text: str, size: int) -> None:
    assert load(None, {}, {"data": "x", "block_cache_bytes": text}).settings.block_cache_bytes == size


def test_every_problem_of_every_source_is_said_at_once(file: Path) -> None:
    file.write_text('memory_budget = "lots"\nfsync = "sometimes"\nlisten = "0.0.0.0:7400"\nmemory_bugdet = 5\n')
    environment = {"ROCKBED_QUEUE_MAX": "-1", "ROCKBED_TTLL": "5", "ROCKBED_INSECURE": "maybe"}
    with pytest.raises(InvalidConfig) as caught:
        load(file, environment, {"workers": "many", "drain": "-1"})
    for said in (
        f"memory_budget in {file} is 'lots': give a number of bytes",
        f"memory_bugdet in {file} is unknown: did you mean memory_budget?",
        "ROCKBED_TTLL is unknown: did you mean ROCKBED_TTL?",
        "ROCKBED_INSECURE is 'maybe': give true or false",
        "--workers is 'many': give a whole number",
        "drain is -1",
        "data is not given",
        "fsync is 'sometimes'",
        "queue_max is -1",
        "listen is '0.0.0.0:7400'",
    ):
        assert said in str(caught.value), said


def test_what_kubernetes_sets_for_a_service_of_this_name_is_let_be() -> None:
    names = ["SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_7400_TCP", "PORT_7400_TCP_ADDR", "SERVICE_PORT_GRPC"]
    names += [f"ADMIN_{name}" for name in names]  # of another Service, rockbed-admin
    environment = {f"ROCKBED_{name}": "10.0.0.1" for name in names}
    assert load(None, {**environment, "ROCKBED_DATA": "x", "ROCKBED_SERVER": "a", "ROCKBED_TOKEN": "b"}).settings.data


@pytest.mark.parametrize("name", ["ROCKBED_DATA_DIR", "ROCKBED_MEMORY", "ROCKBED_", "ROCKBED_PORTS"])
def test_a_variable_that_is_no_setting_is_an_error_with_those_that_are(name: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(None, {"ROCKBED_DATA": "x", name: "1"})
    assert f"{name} is unknown" in str(caught.value)
    for each in fields(Settings):
        assert f"ROCKBED_{each.name.upper()}," in str(caught.value)
    assert "ROCKBED_SERVER, ROCKBED_TOKEN" in str(caught.value)


@pytest.mark.parametrize(("content", "said"), [("[", "is not TOML"), (None, "cannot be read")])
def test_a_file_that_cannot_be_read_is_said(file: Path, content: str | None, said: str) -> None:
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InvalidConfig, match=said):
        load(file, {}, {"data": "x"})


def test_config_prints_a_file_that_says_the_same(file: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[[token]]\nname = "a"\nrole = "read"\nsecret = "sixteen characters"\n')
    printed = CliRunner().invoke(app, ["config", "--config", str(file), "--tokens", str(tokens), "--fsync=always"])
    assert printed.exit_code == 0, printed.output
    assert "# flag" in printed.stdout
    again = tmp_path / "again.toml"
    again.write_text(printed.stdout)
    assert load(again, {}).settings == load(file, {}, {"tokens": str(tokens), "fsync": "always"}).settings
    assert set(tomllib.loads(printed.stdout)) <= {each.name for each in fields(Settings)}


def test_config_ends_with_1_and_the_problems() -> None:
    result = CliRunner().invoke(app, ["config", "--queue-max", "x"])
    assert result.exit_code == 1
    assert "--queue-max is 'x'" in result.stderr
    assert "data is not given" in result.stderr


def test_every_setting_is_a_flag_with_help() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).stdout
    for each in fields(Settings):
        assert "--" + each.name.replace("_", "-") in shown
        assert each.metadata["help"].split(":")[0] in shown


def test_a_token_is_made_that_the_server_takes(tmp_path: Path) -> None:
    from rockbed.server.access import Role, Tokens

    made = CliRunner().invoke(app, ["token", "trainers", "--role", "train"])
    assert made.exit_code == 0
    secret = made.stderr.rpartition(": ")[2].strip()
    file = tmp_path / "tokens.toml"
    file.write_text(made.stdout)
    file.chmod(0o600)
    found = Tokens(file).find(secret)
    assert found is not None
    assert (found.name, found.role) == ("trainers", Role.TRAIN)
    assert found.groups is None
    assert secret not in made.stdout
    assert CliRunner().invoke(app, ["token", "x", "--role", "root"]).exit_code == 1


def test_a_token_is_made_for_groups(tmp_path: Path) -> None:
    from rockbed.server.access import Tokens

    made = CliRunner().invoke(app, ["token", "ranking", "--role", "read", "--group", "7", "--group", "1"])
    file = tmp_path / "tokens.toml"
    file.write_text(made.stdout)
    file.chmod(0o600)
    found = Tokens(file).find(made.stderr.rpartition(": ")[2].strip())
    assert found is not None
    assert found.groups == frozenset({1, 7})
    assert CliRunner().invoke(app, ["token", "x", "--group", "65536"]).exit_code == 2


def test_a_line_of_the_json_log_has_what_was_said() -> None:
    record = logging.makeLogRecord({"name": "rockbed.audit", "levelname": "INFO", "msg": "drop %d", "args": (3,)})
    record.group = 3
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    said = json.loads(JsonLines().format(record))
    assert (said["logger"], said["level"], said["message"], said["group"]) == ("rockbed.audit", "INFO", "drop 3", 3)
    assert said["time"].endswith("+00:00")
    assert "ValueError: why" in said["exception"]
