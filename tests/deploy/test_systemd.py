"""The unit and the user for systemd, as its own tools see them."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from rockbed.server.daemon_settings import Settings
from tests.deploy.effective import effective
from tests.source_tree import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
UNIT = SYSTEMD / "rockbed.service"
PROGRAM = "/opt/rockbed/bin/rockbed"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: it is systemd's own, on Linux only")
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    return unit["Service"]


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """The unit with a program that is there: verify looks whether it is."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert text.count(f"={PROGRAM} ") == 1
    copy.write_text(text.replace(PROGRAM, shutil.which("true") or "/bin/true"))
    return str(copy)


def test_systemd_accepts_the_unit(unit: str) -> None:
    done = run(tool("systemd-analyze"), "verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_in_the_unit_would_be_found(unit: str) -> None:
    Path(unit).write_text(Path(unit).read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in run(tool("systemd-analyze"), "verify", "--man=no", unit).stderr


def test_the_service_is_locked_up(unit: str) -> None:
    # systemd's own scale from 0 to 10; the argument is ten times that
    done = run(tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_user_of_the_service_is_made() -> None:
    done = run(tool("systemd-sysusers"), "--dry-run", str(SYSTEMD / "rockbed.sysusers"))
    assert done.returncode == 0, done.stderr
    assert service()["User"] == service()["Group"] == "rockbed"
    assert "u rockbed " in (SYSTEMD / "rockbed.sysusers").read_text()


def test_the_server_accepts_its_settings_and_has_the_memory_and_the_time(tmp_path: Path) -> None:
    settings = effective(tmp_path, SYSTEMD / "rockbed.toml")
    assert settings.listen == "127.0.0.1:7400"
    assert (service()["MemoryMax"], settings.memory_budget) == ("6G", 4 << 30)  # and 2 GiB
    assert (service()["TimeoutStopSec"], Settings().drain) == ("5min", 30.0)


def test_the_settings_for_other_machines_are_accepted(tmp_path: Path) -> None:
    lines = (SYSTEMD / "rockbed.toml").read_text().splitlines()
    shown = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    kept = [line for line in lines if not line.startswith(("#", "listen"))]
    (tmp_path / "tls.toml").write_text("\n".join([*kept, *shown]))
    settings = effective(tmp_path, tmp_path / "tls.toml")
    assert (settings.listen, settings.insecure) == ("0.0.0.0:7400", False)
    assert settings.tokens is not None
    assert settings.tls_cert is not None


def test_all_that_is_written_is_below_the_services_directories() -> None:
    assert service()["StateDirectory"].split() == ["rockbed", "rockbed/checkpoints", "rockbed/exports"]
    text = (SYSTEMD / "rockbed.toml").read_text()
    assert all(f'"/var/lib/rockbed/{name}"' in text for name in ("store", "checkpoints", "exports"))
    assert service()["Environment"] == "NUMBA_CACHE_DIR=%C/" + service()["CacheDirectory"]
