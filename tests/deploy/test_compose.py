"""The compose files: by Docker Compose where it is installed, and what it does not look at."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.effective import effective
from tests.source_tree import ROOT

DEPLOY = ROOT / "deploy"


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with Compose's own tag, which replaces a list instead of adding to it."""


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.load((DEPLOY / name).read_text(), Loader)
    return config


PLAIN, TLS = read("compose.yaml"), read("compose.tls.yaml")
ROCKBED = PLAIN["services"]["rockbed"]
TLS_ENVIRONMENT = ROCKBED["environment"] | TLS["services"]["rockbed"]["environment"]


def sources(kind: str) -> list[str]:
    """What the services mount of a kind ("volume" or "path"), as they name it."""
    mounts = [mount.split(":")[0] for service in PLAIN["services"].values() for mount in service.get("volumes", [])]
    return [source for source in mounts if source.startswith(".") == (kind == "path")]


@pytest.mark.parametrize("names", [["compose.yaml"], ["compose.yaml", "compose.tls.yaml"]], ids=["plain", "tls"])
def test_docker_compose_accepts_the_files(names: list[str]) -> None:
    compose = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*compose, "version"], capture_output=True).returncode:
        pytest.skip("Docker Compose is not installed: https://docs.docker.com/compose/install has it; no engine needed")
    files = [word for name in names for word in ("--file", name)]
    done = subprocess.run(
        [*compose, *files, "config", "--format", "json"], cwd=DEPLOY, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    ports = json.loads(done.stdout)["services"]["rockbed"]["ports"]
    assert [port.get("host_ip") for port in ports] == ([None] if len(names) > 1 else ["127.0.0.1"])


def test_all_that_is_mounted_is_there() -> None:
    assert [path for path in sources("path") if not (DEPLOY / path).exists()] == []
    assert set(sources("volume")) == set(PLAIN["volumes"])


def test_every_secret_is_declared_used_and_in_no_repository() -> None:
    for config in (PLAIN, TLS):
        used = [name for service in config["services"].values() for name in service.get("secrets", [])]
        assert sorted(used) == sorted(config["secrets"])
        assert all(secret["file"].startswith("./secrets/") for secret in config["secrets"].values())
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_only_the_rows_and_the_dashboard_are_published_and_without_tls_on_the_loopback() -> None:
    published = {name: service["ports"] for name, service in PLAIN["services"].items() if "ports" in service}
    assert published == {"rockbed": ["127.0.0.1:7400:7400"], "grafana": ["127.0.0.1:3000:3000"]}
    assert TLS["services"]["rockbed"]["ports"] == ["7400:7400"]


def test_every_image_has_a_version() -> None:
    others = [service["image"] for name, service in PLAIN["services"].items() if name != "rockbed"]
    assert all(":" in image and not image.endswith(":latest") for image in others)
    build = ROCKBED["build"]
    assert ((DEPLOY / build["context"]).resolve(), build["dockerfile"]) == (ROOT, "deploy/Dockerfile")


@pytest.mark.parametrize("environment", [ROCKBED["environment"], TLS_ENVIRONMENT], ids=["plain", "tls"])
def test_the_server_accepts_its_settings(tmp_path: Path, environment: dict[str, str]) -> None:
    settings = effective(tmp_path, DEPLOY / "rockbed.toml", environment)
    assert settings.listen == "0.0.0.0:7400"
    assert settings.tokens is not None
    assert settings.insecure == (settings.tls_cert is None)
    assert ROCKBED["mem_limit"] == "6g"
    assert settings.memory_budget == 4 << 30  # 2 GiB less
    if settings.admin_listen is not None:
        assert TLS["services"]["rockbed"]["healthcheck"]["test"][-1] == settings.admin_listen


def test_grafana_finds_the_data_source_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "rockbed.yaml").read_text())["providers"]
    mounted = [mount.split(":")[:2] for mount in PLAIN["services"]["grafana"]["volumes"]]
    assert ["./grafana/rockbed.json", f"{provider['options']['path']}/rockbed.json"] in mounted
