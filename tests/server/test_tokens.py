"""The file of tokens: what it may hold, and what becomes of it when it changes."""

import hashlib
from pathlib import Path

import pytest

from rockbed import InvalidConfig, PermissionDenied
from rockbed.server.access import Role, Tokens

SECRET = "correct horse battery"
GOOD = f"""
[[token]]
name = "ops"
role = "admin"
secret = "{SECRET}"

[[token]]
name = "serving"
role = "read"
sha256 = "{hashlib.sha256(b"another secret, hashed").hexdigest()}"
groups = [1, 7]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(GOOD)
    path.chmod(0o600)
    return path


def test_a_secret_leads_to_its_principal_and_nothing_else_does(file: Path) -> None:
    tokens = Tokens(file)
    ops, serving = tokens.find(SECRET), tokens.find("another secret, hashed")
    assert ops is not None
    assert (ops.name, ops.role, ops.groups) == ("ops", Role.ADMIN, None)
    assert serving is not None
    assert (serving.name, serving.role, serving.groups) == ("serving", Role.READ, frozenset({1, 7}))
    for wrong in ("", SECRET[:-1], SECRET + " ", SECRET.upper(), hashlib.sha256(SECRET.encode()).hexdigest()):
        assert tokens.find(wrong) is None


def test_a_role_may_do_what_those_below_it_may(file: Path) -> None:
    serving = Tokens(file).find("another secret, hashed")
    assert serving is not None
    serving.must_be(Role.READ, "look up")
    serving.must_reach([1, 7])
    with pytest.raises(PermissionDenied, match="'serving' has the role 'read' and cannot push, which takes 'train'"):
        serving.must_be(Role.TRAIN, "push")
    with pytest.raises(PermissionDenied, match="group 2"):
        serving.must_reach([1, 2])
    with pytest.raises(PermissionDenied, match="cannot flush, which concerns all"):
        serving.must_reach_all("flush")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no \\[\\[token\\]\\]"),
        ("token = 5", "no \\[\\[token\\]\\]"),
        ("[[token", "is not TOML"),
        (GOOD + "\n[other]\n", "unknown key 'other'"),
        (GOOD.replace("groups =", "group ="), "token 2 \\('serving'\\): unknown key 'group'"),
        (GOOD.replace('"admin"', '"root"'), "role is 'root', not one of read, train, admin"),
        (GOOD.replace('name = "ops"', ""), "name is missing"),
        (GOOD.replace(SECRET, "short"), "at least 16 printable"),
        (GOOD.replace("sha256", "secret2"), "give secret or sha256"),
        (GOOD.replace("sha256 = ", 'sha256 = "zz" #'), "64 hexadecimal"),
        (GOOD.replace("[1, 7]", "[1, 70000]"), "groups is"),
        (GOOD.replace("[1, 7]", "[]"), "groups is"),
        (GOOD.replace('"serving"', '"ops"'), "same name"),
        (GOOD + f'[[token]]\nname = "x"\nrole = "read"\nsecret = "{SECRET}"', "same secret"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_its_problem(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=said):
        Tokens(file)


def test_every_problem_is_said_at_once(file: Path) -> None:
    file.write_text(GOOD.replace('"admin"', '"root"').replace("[1, 7]", "[-1]"))
    with pytest.raises(InvalidConfig, match=r"token 1 .*role is 'root'.*token 2 .*groups is \[-1\]"):
        Tokens(file)


def test_no_secret_stands_in_an_error_or_a_repr(file: Path) -> None:
    assert SECRET not in repr(vars(Tokens(file)))
    file.write_text(GOOD.replace('"admin"', '"root"'))
    with pytest.raises(InvalidConfig) as caught:
        Tokens(file)
    assert SECRET not in str(caught.value)


def test_a_changed_file_is_read_and_a_broken_one_is_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens(file)
    file.write_text(GOOD.replace(SECRET, "a quite different one"))
    tokens.refresh()
    assert tokens.find(SECRET) is None
    assert tokens.find("a quite different one") is not None
    file.write_text("nonsense")
    tokens.refresh()
    assert "the tokens of before stay in use" in caplog.text
    file.unlink()
    tokens.refresh()
    assert tokens.find("a quite different one") is not None
    file.write_text(GOOD)
    tokens.refresh()
    assert tokens.find(SECRET) is not None


def test_a_file_that_everyone_can_read_is_warned_about(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokens(file)
    assert not caplog.text
    file.chmod(0o644)
    Tokens(file)
    assert "chmod 600" in caplog.text
