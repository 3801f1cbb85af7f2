"""Every kernel compiles for the GPUs that are meant to run it, on a machine without one: by NVRTC, or by nvcc."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rockbed.errors import DeviceUnavailable
from rockbed.optimizers import make_optimizer, optimizer_names
from rockbed.storage.gpu import nvrtc
from rockbed.storage.gpu.rules import update_kernel
from rockbed.storage.gpu.sources import BACKWARD, OPTIONS, POOL, TABLE, Module

ARCHITECTURES = ("sm_80", "sm_90")


def rule_instances(dim: int, names: list[str]) -> Module:
    """The update kernels of several rules as one module."""
    made = [make_optimizer(name) for name in names] + [make_optimizer("rmsprop", momentum=0.9)]
    instances = [update_kernel(rule, dim)[0].instances for rule in made]
    return Module("update.cu", "".join(line.replace("(update", f"(update{i}") for i, line in enumerate(instances)))


# a width for each way that rows are read: whole quarters, single floats, several rounds
MODULES = {
    "table": TABLE,
    "pool": POOL,
    "backward": BACKWARD,
    "every rule": rule_instances(64, optimizer_names()),
    "dim 1": rule_instances(1, ["adam", "rowwise_adagrad"]),
    "dim 33": rule_instances(33, ["adagrad_decay", "group_adam"]),
    "dim 300": rule_instances(300, ["adam", "partial_rowwise_adam"]),
}


def by_nvcc(nvcc: str, module: Module, architecture: str, folder: Path) -> str:
    source = folder / f"{architecture}.cu"
    source.write_text(module.text())
    options = [*OPTIONS, "--cubin", f"-arch={architecture}", "-o", str(folder / f"{architecture}.cubin")]
    done = subprocess.run([nvcc, *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MODULES)
def test_a_kernel_compiles_without_a_word_of_complaint(name: str, architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvrtc.library() is not None:
        code, said = nvrtc.compiled(MODULES[name], architecture)
        assert code.startswith(b"\x7fELF")
    elif nvcc is not None:
        said = by_nvcc(nvcc, MODULES[name], architecture, tmp_path)
    else:
        pytest.skip("no CUDA compiler: pip install nvidia-cuda-nvrtc-cu12 (or install nvcc), no GPU is needed")
    assert said.strip() == ""


needs_nvrtc = pytest.mark.skipif(
    nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc-cu12, no GPU is needed"
)


@needs_nvrtc
def test_machine_code_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nvrtc._folder.cache_clear()
    module = rule_instances(4, ["sgd"])
    path = nvrtc.kept(module, "sm_90")
    assert path.parent == tmp_path / "rockbed" / "cuda"
    path.write_bytes(b"kept")
    assert nvrtc.kept(module, "sm_90") == path
    assert path.read_bytes() == b"kept"
    assert nvrtc.kept(module, "sm_80") != path
    nvrtc._folder.cache_clear()


@needs_nvrtc
def test_an_architecture_that_the_compiler_does_not_know_is_an_error_that_says_so() -> None:
    with pytest.raises(DeviceUnavailable, match=r"could not compile update\.cu for sm_7: .*newer CUDA"):
        nvrtc.compiled(rule_instances(4, ["sgd"]), "sm_7")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    with pytest.raises(DeviceUnavailable, match="nvidia-cuda-nvrtc-cu12"):
        nvrtc.compiled(TABLE, "sm_90")
    assert nvrtc.version() == "none"


def test_nothing_is_approximated() -> None:
    assert {"--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"} <= set(OPTIONS)
    assert not any("fast" in option for option in OPTIONS)
