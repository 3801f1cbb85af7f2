"""Which store a command works on, and how commands end when there is none."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme

from rockbed import PyStorage
from rockbed.client.target import url
from rockbed.server.cli_commands import _PANELS
from tests.cli.helpers import Place, done, environment, make_store, refused, run, said
from tests.server.served import Server
from tests.source_tree import ROOT

ADMIN = "a secret of the administrator's"
READER = "a secret of a reader's own"


def test_one_store_is_given_not_two_and_not_none(model: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "which store?" in refused("groups", code=2)
    both = refused("groups", *model.options, "--server", "127.0.0.1:1", code=2)
    assert "--server and --data are both given" in both
    monkeypatch.setenv("ROCKBED_DATA", model.options[1])
    monkeypatch.setenv("ROCKBED_SERVER", "127.0.0.1:1")
    assert "ROCKBED_SERVER and ROCKBED_DATA are both given" in refused("groups", code=2)


def test_the_environment_names_a_store_where_the_command_line_does_not(
    model: Place, served: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKBED_SERVER", served.options[1].removeprefix("grpc://"))
    assert said("stats")["path"] == str(served.folder / "store")
    assert done("health") == "SERVING\n"
    assert said("stats", *model.options)["path"] == model.options[1]
    monkeypatch.delenv("ROCKBED_SERVER")
    monkeypatch.setenv("ROCKBED_DATA", model.options[1])
    assert said("stats")["path"] == model.options[1]
    assert said("stats", *served.options)["path"] == str(served.folder / "store")


def test_a_mistyped_variable_is_an_error_where_the_environment_counts(
    model: Place, served: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKBED_SERVER", served.options[1])
    monkeypatch.setenv("ROCKBED_TOKENN", "secret")
    line = refused("stats", code=2)
    assert "ROCKBED_TOKENN is unknown: did you mean ROCKBED_TOKEN" in line
    assert "ROCKBED_DATA, " in line
    assert "ROCKBED_TOKENN is unknown" in refused("stats", *served.options, code=2)  # the token may be missing
    assert said("stats", *model.options)["path"] == model.options[1]


def test_an_option_of_the_other_kind_of_store_is_refused(model: Place, served: Place, tmp_path: Path) -> None:
    for option in ("--token-file", "--tls-ca", "--tls-cert", "--tls-key"):
        line = refused("groups", *model.options, option, tmp_path / "x", code=2)
        assert f"{option}: with --server only" in line
    for option in ("--deadline", "--retry"):
        assert f"{option}: with --server only" in refused("groups", *model.options, option, 1, code=2)
    assert "--ttl: with --data only" in refused("groups", *served.options, "--ttl", 1, code=2)


@pytest.mark.parametrize(
    ("typed", "target"),
    [
        ("127.0.0.1:7400", "grpc://127.0.0.1:7400"),
        ("grpcs://a.example:1", "grpcs://a.example:1"),
        ("unix:/run/s", "grpc+unix:///run/s"),
        ("grpc+unix:///run/s", "grpc+unix:///run/s"),
    ],
)
def test_a_server_is_named_with_or_without_its_scheme(typed: str, target: str) -> None:
    assert url(typed) == target


@pytest.mark.parametrize("typed", ["7400", "http://127.0.0.1:80", "./model"])
def test_what_is_no_server_is_not_taken_for_a_directory(typed: str) -> None:
    assert "names no server" in refused("stats", "--server", typed, code=1)


def test_a_server_that_is_not_there_is_1_at_once() -> None:
    assert "cannot be reached" in refused("groups", "--server", "127.0.0.1:1", code=1)
    assert "deadline_s is 0.0" in refused("groups", "--server", "127.0.0.1:1", "--deadline", 0, code=1)


def test_a_server_that_comes_back_is_waited_for_with_retry(server: Server, tmp_path: Path) -> None:
    starting = threading.Timer(0.5, lambda: server.start(listen=f"unix:{tmp_path}/s"))
    starting.start()
    assert said("groups", "--server", f"unix:{tmp_path}/s", "--retry", 30) == []
    starting.join()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for command in (["groups"], ["flush"], ["compact"], ["checkpoint", tmp_path / "x"], ["shrink", "--yes"]):
        assert "no store" in refused(*command, "--data", tmp_path / "typo", code=1)
        assert not (tmp_path / "typo").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    assert "is no store and not empty" in refused("flush", "--data", tmp_path / "notes", code=1)


def test_a_directory_that_a_process_writes_is_refused(tmp_path: Path) -> None:
    with PyStorage(tmp_path / "store"):
        for command in ("stats", "flush"):
            assert "store" in refused(command, "--data", tmp_path / "store", code=1)


def test_reading_commands_share_a_directory_with_readers(model: Place) -> None:
    with PyStorage(model.options[1], read_only=True):
        for command in (["groups"], ["stats"], ["check"], ["get", "--group", 1, 1], ["top", "--count", 1]):
            done(*command, *model.options)
        done("shrink", "--dry-run", *model.options)
        done("export", model.folder / "e", "--format", "npz", *model.options)
        refused("flush", *model.options, code=1)


def test_a_directory_is_told_how_long_its_rows_live(model: Place) -> None:
    assert said("shrink", "--dry-run", *model.options)["rows_removed"] == 0
    expired = said("shrink", "--dry-run", "--ttl", 0.001, *model.options)
    assert expired["rows_removed"] == 101
    assert expired["removed"]["1"]["expired"] == 100


# --- tokens and TLS ---


@pytest.fixture
def guarded(server: Server, tmp_path: Path) -> str:
    roles = (("ops", "admin", ADMIN), ("ranking", "read", READER))
    text = "".join(f'[[token]]\nname = "{name}"\nrole = "{role}"\nsecret = "{s}"\n' for name, role, s in roles)
    (tmp_path / "tokens.toml").write_text(text)
    (tmp_path / "tokens.toml").chmod(0o600)
    return server.start(tokens=tmp_path / "tokens.toml")


def test_the_token_comes_from_a_file_or_the_environment(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "wants a token and none was sent" in refused("groups", "--server", guarded, code=1)
    monkeypatch.setenv("ROCKBED_TOKEN", "wrong, and quite wrong")
    assert "does not know the token" in refused("groups", "--server", guarded, code=1)
    monkeypatch.setenv("ROCKBED_TOKEN", READER)
    assert said("groups", "--server", guarded) == []
    assert "cannot call Flush, which takes 'admin'" in refused("flush", "--server", guarded, code=1)
    (tmp_path / "token").write_text(ADMIN + "\n")
    done("flush", "--server", guarded, "--token-file", tmp_path / "token")
    missing = refused("flush", "--server", guarded, "--token-file", tmp_path / "none", code=1)
    assert "cannot be read" in missing
    assert ADMIN not in missing


def test_a_token_that_may_not_drop_a_group_benches_nothing(
    guarded: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKBED_TOKEN", READER)
    assert "cannot call Shrink" in refused("bench", "--server", guarded, code=1)
    assert not server.engine.groups


def test_commands_and_health_speak_tls_and_show_a_certificate(server: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, issued in (
        ("server", authority.issue_cert("localhost", "127.0.0.1")),
        ("me", authority.issue_cert("me")),
    ):
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    target = server.start(
        tls_cert=tmp_path / "server.pem", tls_key=tmp_path / "server.key", tls_client_ca=tmp_path / "ca.pem"
    )
    own = ("--tls-cert", tmp_path / "me.pem", "--tls-key", tmp_path / "me.key")
    for command in ("groups", "health"):
        at = (command, "--server", target)
        done(*at, "--tls-ca", tmp_path / "ca.pem", *own)
        done(*at, "--tls-ca", tmp_path / "ca.pem", "--tls-name", "localhost", *own)
        assert "ertificate" in refused(*at, *own, code=1)
        assert "belong together" in refused(*at, *own[:2], code=1)
        assert "which is no file" in refused(*at, "--tls-ca", tmp_path / "none", code=1)
        plain = (command, "--server", target.replace("grpcs://", ""))
        assert "is not encrypted; one with TLS is grpcs://" in refused(*plain, "--tls-ca", tmp_path / "ca.pem", code=1)
        assert "(with it: grpcs://HOST:PORT)" in refused(command, "--server", target.replace("grpcs", "grpc"), code=1)


# --- the program ---


@pytest.mark.parametrize("command", [each.__name__.rstrip("_") for panel in _PANELS.values() for each in panel])
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = done(command, "--help")
    assert f"Example: rockbed {command}" in text
    assert "--json" in text


def test_an_unknown_command_or_option_is_2() -> None:
    assert run("shrimp").exit_code == 2
    assert run("stats", "--jason").exit_code == 2
    assert run("export", "x", "--format", "csv").exit_code == 2
    assert run("top", "--count", "0").exit_code == 2


def _loaded_by(*arguments: str) -> set[str]:
    code = """
import json, sys
from rockbed.server.cli import app
try:
    app(sys.argv[1:])
finally:
    print(json.dumps(sorted({"numba", "numpy", "rich", "rocksdict"} & set(sys.modules))), file=sys.stderr)
"""
    command = [sys.executable, "-c", code, *arguments]
    finished = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return set(json.loads(finished.stderr.splitlines()[-1]))


def test_a_command_on_a_server_loads_no_engine_and_json_takes_no_rich(served: Place) -> None:
    for command in (["groups"], ["stats"], ["get", "--group", "1", "1"], ["flush"], ["top", "--interval", "0.05"]):
        assert _loaded_by(*command, "--json", *served.options) == {"numpy"}
    assert "numba" not in _loaded_by("groups", *served.options)


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> set[str]:
        code = "import sys; sys.argv[0] = 'rockbed'; from rockbed.__main__ import main; main()"
        asked = {"_ROCKBED_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-c", code]
        finished = subprocess.run(command, cwd=ROOT, env=environment(**asked), capture_output=True, text=True)
        return set(finished.stdout.split())

    assert completed("rockbed ch") == {"check", "checkpoint"}
    assert "--token-file" in completed("rockbed stats --")
    assert completed("rockbed put --mode ") == {"replace", "keep"}


def test_the_program_ends_with_the_exit_code(tmp_path: Path) -> None:
    make_store(tmp_path / "model")
    command = [sys.executable, "-m", "rockbed", "groups", "--json"]
    for options, code in ((["--data", str(tmp_path / "model")], 0), (["--data", str(tmp_path)], 1), ([], 2)):
        finished = subprocess.run([*command, *options], cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert finished.returncode == code, finished.stderr
        assert bool(finished.stdout) == (code == 0)
