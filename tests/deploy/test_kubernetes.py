"""The manifests: against Kubernetes' own schemas, as kubectl builds them, and with each other."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rockbed.server.access import Tokens
from tests.deploy.effective import effective
from tests.source_tree import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE, TLS = KUBERNETES / "base", KUBERNETES / "tls"
MANIFESTS = ["statefulset.yaml", "services.yaml", "poddisruptionbudget.yaml", "networkpolicy.yaml"]
VERSIONS = ["1.29", "1.37"]  # the oldest that has all that is used, and a new one
LABELS = {"app.kubernetes.io/name": "rockbed"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in manifests if each["kind"] == "StatefulSet")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def built(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would send."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: https://kubernetes.io/docs/tasks/tools has it; no cluster is needed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def probes(container: dict[str, Any]) -> dict[str, Any]:
    return {name.removesuffix("Probe"): probe for name, probe in container.items() if name.endswith("Probe")}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*MANIFESTS, "secret.example.yaml"])
def test_kubernetes_accepts_each_manifest(name: str, version: str) -> None:
    for manifest in documents(BASE / name):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", [BASE, TLS], ids=["base", "tls"])
def test_kubernetes_accepts_what_kustomize_makes_of_them(folder: Path, version: str) -> None:
    manifests = built(folder)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
    kinds = ["ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service", "StatefulSet"]
    assert sorted(manifest["kind"] for manifest in manifests) == kinds


def test_a_mistake_in_a_manifest_would_be_found() -> None:
    (manifest,) = documents(BASE / "statefulset.yaml")
    pod([manifest])["terminationGracePeriod"] = 300
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


def test_the_kustomization_names_every_manifest_but_the_optional_ones() -> None:
    (kustomization,) = documents(BASE / "kustomization.yaml")
    assert kustomization["resources"] == MANIFESTS
    optional = {"kustomization.yaml", "secret.example.yaml", "servicemonitor.yaml"}
    assert {path.name for path in BASE.glob("*.yaml")} == {*MANIFESTS, *optional}


def test_everything_selects_the_pod_by_its_labels_and_its_ports_by_their_names() -> None:
    (stateful,) = documents(BASE / "statefulset.yaml")
    assert stateful["spec"]["selector"]["matchLabels"] == stateful["spec"]["template"]["metadata"]["labels"] == LABELS
    (container,) = pod([stateful])["containers"]
    ports = {port["name"] for port in container["ports"]}
    services = documents(BASE / "services.yaml")
    for service in services:
        assert service["spec"]["selector"] == LABELS
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert stateful["spec"]["serviceName"] in [s["metadata"]["name"] for s in services if "clusterIP" in s["spec"]]
    (policy,) = documents(BASE / "networkpolicy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == LABELS
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == ports
    (budget,) = documents(BASE / "poddisruptionbudget.yaml")
    assert budget["spec"]["selector"]["matchLabels"] == LABELS
    (monitor,) = documents(BASE / "servicemonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= services[1]["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in ports


@pytest.mark.parametrize("folder", [BASE, TLS], ids=["base", "tls"])
def test_the_server_accepts_its_settings_which_fit_the_pod(tmp_path: Path, folder: Path) -> None:
    settings = effective(tmp_path, folder / "rockbed.toml")
    spec = pod(documents(BASE / "statefulset.yaml"))
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (settings.listen, settings.metrics_listen) == (f"0.0.0.0:{ports['grpc']}", f"0.0.0.0:{ports['metrics']}")
    assert settings.tokens is not None
    assert settings.insecure == (settings.tls_cert is None)
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"] == "6Gi"
    assert settings.memory_budget == 4 << 30  # 2 GiB less
    assert spec["terminationGracePeriodSeconds"] > settings.drain + 60


@pytest.mark.parametrize("folder", [BASE, TLS], ids=["base", "tls"])
def test_every_path_of_the_settings_is_mounted(folder: Path) -> None:
    spec = pod(built(folder))
    (container,) = spec["containers"]
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    volumes = {volume["name"] for volume in spec["volumes"]} | {"rows"}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    lines = [line.partition("#")[0] for line in (folder / "rockbed.toml").read_text().splitlines()]
    paths = [value.strip(' "').removeprefix("unix:") for line in lines if "/" in line for value in line.split("=")[1:]]
    assert paths
    assert [path for path in paths if not any(path.startswith(place + "/") for place in places)] == []


def test_probes_speak_grpc_or_with_tls_ask_at_the_socket_of_the_settings(tmp_path: Path) -> None:
    (container,) = pod(documents(BASE / "statefulset.yaml"))["containers"]
    assert {name: probe["grpc"]["port"] for name, probe in probes(container).items()} == {
        "startup": 7400,
        "readiness": 7400,
        "liveness": 7400,
    }
    socket = effective(tmp_path, TLS / "rockbed.toml").admin_listen
    (container,) = pod(built(TLS))["containers"]
    assert len(probes(container)) == 3
    for probe in probes(container).values():
        assert "grpc" not in probe
        assert probe["exec"]["command"] == ["rockbed", "health", "--server", socket]


def test_nothing_in_the_pod_is_root_or_can_become_it() -> None:
    spec = pod(documents(BASE / "statefulset.yaml"))
    user = f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    assert user in (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    assert spec["securityContext"]["runAsNonRoot"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_pod_keeps_kernels_where_the_image_has_them() -> None:
    spec = pod(documents(BASE / "statefulset.yaml"))
    (container,), (prepare,) = spec["containers"], spec["initContainers"]
    (place,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "kernels"]
    assert f"NUMBA_CACHE_DIR={place} " in (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"cp -R {place}/. /kernels/\n" in prepare["command"][-1]


def test_the_example_of_tokens_is_one_that_the_server_reads(tmp_path: Path) -> None:
    (secret,) = documents(BASE / "secret.example.yaml")
    volumes = {volume["name"]: volume for volume in pod(documents(BASE / "statefulset.yaml"))["volumes"]}
    assert volumes["tokens"]["secret"]["secretName"] == secret["metadata"]["name"]
    ((name, text),) = secret["stringData"].items()
    path = tmp_path / name
    path.write_text(text)
    assert len(Tokens(path)) == 1
