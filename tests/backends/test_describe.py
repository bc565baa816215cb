"""A backend says what it is, and what this machine has that it does not use; each situation is simulated."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import nanochat
from nanochat import backends
from nanochat.backends import host
from nanochat.backends.describe import describe, faster, summary
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.cli.doctor import doctor
from nanochat.errors import how_to_install
from nanochat.ops import Ops

NUMBA = {"backend": "numba", "device": "cpu, 2 threads", "instructions": "avx2", "threads": 2}
REFERENCE = {"backend": "reference", "device": "cpu"}
TORCH = {"backend": "torch", "device": "cpu", "threads": 2, "cores": 2}


class Machine:
    """What there is on a simulated machine; at first a CPU, and Numba."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch, self._folder = patch, folder
        self.lacks("torch", "mlx", "mlx.core")
        patch.setattr(host, "_DRIVERS", (folder / "driver",))
        patch.setattr(sys, "platform", "linux")
        for variable in ("NANOCHAT_BACKEND", "CUDA_VISIBLE_DEVICES"):
            patch.delenv(variable, raising=False)

    def lacks(self, *modules: str) -> None:
        for module in modules:
            self._patch.setitem(sys.modules, module, None)

    def has(self, *names: str) -> None:
        known = backends.unavailable
        here = set(names)
        self._patch.setattr(
            "nanochat.backends.unavailable",
            lambda name: None if name in here else known(name),
        )

    def has_driver(self) -> None:
        (self._folder / "driver").touch()

    def has_apple_gpu(self) -> None:
        self._patch.setattr(sys, "platform", "darwin")
        self._patch.setattr("platform.machine", lambda: "arm64")

    def torch_sees_cuda(self, answer: bool | None) -> None:
        self._patch.setattr("nanochat.backends.describe._sees_cuda", lambda: answer)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


# What would be faster.


@pytest.mark.usefixtures("here")
def test_nothing_is_faster_than_numba_on_a_machine_with_only_a_cpu() -> None:
    assert faster(NUMBA) == ()


@pytest.mark.parametrize("described", [NUMBA, REFERENCE], ids=["numba", "reference"])
def test_a_gpu_whose_package_is_missing_is_named_with_the_package(
    here: Machine, described: dict[str, object]
) -> None:
    here.has_driver()

    assert faster(described)[0] == (f"the NVIDIA GPU is not used: {how_to_install('cuda')}")


def test_a_torch_without_cuda_is_named_as_the_reason(here: Machine) -> None:
    here.has_driver()
    here.has("torch")
    here.torch_sees_cuda(False)

    assert "because this build of torch finds none: install one for CUDA" in faster(NUMBA)[0]


@pytest.mark.parametrize("answer", [True, None], ids=["seen", "not asked"])
def test_a_gpu_that_was_passed_over_can_be_chosen(here: Machine, answer: bool | None) -> None:
    here.has_driver()
    here.has("torch")
    here.torch_sees_cuda(answer)

    assert faster(NUMBA, reason="asked for")[0] == (
        "the NVIDIA GPU is not used: choose backend torch"
    )


def test_a_gpu_that_the_environment_hides_is_named_with_the_variable(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.has_driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert "unset CUDA_VISIBLE_DEVICES" in faster(NUMBA)[0]


def test_a_gpu_in_use_is_not_spoken_of(here: Machine) -> None:
    here.has_driver()
    here.has("torch")

    assert faster({"backend": "torch", "device": "cuda:0"}, reason="a CUDA device is there") == ()


def test_torch_on_the_cpu_beside_a_gpu_is_told_of_it(here: Machine) -> None:
    here.has_driver()
    here.has("torch", "numba")
    here.torch_sees_cuda(True)

    assert faster(TORCH)[0] == "the NVIDIA GPU is not used: pass TorchOps('cuda') as the backend"


def test_apple_silicon_without_mlx_is_told_of_it(here: Machine) -> None:
    here.has_apple_gpu()

    assert faster(NUMBA) == (f"the Apple GPU is not used: {how_to_install('mlx')}",)


def test_mlx_on_apple_silicon_is_all_that_there_is(here: Machine) -> None:
    here.has_apple_gpu()
    here.has("mlx")

    assert faster({"backend": "mlx", "device": "gpu"}) == ()
    assert faster(NUMBA, reason="asked for") == ("the Apple GPU is not used: choose backend mlx",)


@pytest.mark.parametrize("name", ["reference", "torch", "mlx", "onnx"])
def test_compiled_kernels_are_proposed_instead_of_what_is_slower_on_a_cpu(
    here: Machine, name: str
) -> None:
    here.has("numba")

    assert faster({"backend": name, "device": "cpu"}, reason="asked for") == (
        "compiled CPU kernels are faster: choose backend numba",
    )


def test_compiled_kernels_that_are_missing_are_proposed_with_their_package(here: Machine) -> None:
    here.lacks("numba")

    assert faster(REFERENCE) == ("compiled CPU kernels are faster: pip install numba",)


@pytest.mark.usefixtures("here")
def test_a_slower_backend_that_the_environment_chose_is_named_with_the_variable() -> None:
    assert faster(REFERENCE, reason="NANOCHAT_BACKEND is set") == (
        "compiled CPU kernels are faster: unset NANOCHAT_BACKEND, or set it to numba",
    )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("used", "best", "slower"),
    [
        ("portable", "avx2", True),
        ("avx2", "avx512vnni", True),
        ("avxvnni", "avx512vnni", False),
        ("avx2", "avx2", False),
    ],
)
def test_slower_instructions_are_named_with_the_variable(
    used: str, best: str, slower: bool
) -> None:
    found = faster({**NUMBA, "instructions": used, "available": [best, "portable"]})

    assert found == ((f"{best} is faster than {used}: unset NANOCHAT_ISA",) if slower else ())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("threads", "told"), [(1, True), (4, False), (8, False)])
def test_cores_without_a_thread_are_counted(threads: int, told: bool) -> None:
    found = faster({**NUMBA, "threads": threads, "cores": 4})

    assert bool(found) == told
    assert not found or found[0].startswith("numba uses 1 of 4 cores: leave num_threads out")


@pytest.mark.usefixtures("here")
def test_nothing_is_said_of_a_backend_of_ones_own() -> None:
    assert faster({"backend": "mine", "device": "cpu"}) == ()


def test_the_reason_for_numba_names_what_the_machine_has(here: Machine) -> None:
    plain = backends.choose()
    here.has_driver()
    with_driver = backends.choose()
    here.has_apple_gpu()

    assert plain == ("numba", "no CUDA device and no Apple GPU; compiled CPU code is next")
    assert "there is a CUDA driver, but torch is not installed" in with_driver[1]
    assert "this is Apple silicon, but MLX is not installed" in backends.choose()[1]


# The line.


@pytest.mark.usefixtures("here")
def test_the_line_names_backend_instructions_threads_and_reason() -> None:
    assert summary("nanochat-tiny", "asked for", NUMBA) == (
        "nanochat-tiny runs on numba (avx2, 2 threads): asked for"
    )


@pytest.mark.usefixtures("here")
def test_the_line_ends_with_what_would_be_faster() -> None:
    assert summary("m", "NANOCHAT_BACKEND is set", REFERENCE) == (
        "m runs on reference (cpu): NANOCHAT_BACKEND is set. To use more of this machine: compiled CPU kernels are "
        "faster: unset NANOCHAT_BACKEND, or set it to numba"
    )


@pytest.mark.usefixtures("here", "soon_measured")
def test_the_doctor_says_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BACKEND", "reference")
    advice = faster(REFERENCE, reason="NANOCHAT_BACKEND is set")

    told = CliRunner().invoke(doctor, ["--json"]).stdout
    shown = CliRunner().invoke(doctor, []).stdout

    assert json.loads(told)["faster"] == list(advice)
    assert shown.endswith(f"\nto use more of this machine: {advice[0]}\n")


# The description.


def test_every_backend_describes_itself_in_plain_values(ops: Ops[Any, Any, Any]) -> None:
    found = describe(ops)

    name = str(found["backend"])
    assert name in backends.names()
    assert str(found["device"]).startswith(("cpu", "gpu", "cuda", "mps"))
    assert json.loads(json.dumps(found)) == found
    versions = found["versions"]
    assert isinstance(versions, dict)
    assert "numpy" in versions
    assert name == "reference" or name in versions


def test_a_description_takes_no_time(ops: Ops[Any, Any, Any]) -> None:
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        summary("m", "asked for", describe(ops))
        seconds.append(time.thread_time() - start)

    assert min(seconds) < 0.005


def test_a_model_at_work_is_described_as_its_backend() -> None:
    model = nanochat.from_pretrained("nanochat-tiny", backend="reference")

    assert describe(model.engine) == describe(ReferenceOps())


@pytest.mark.skipif(backends.unavailable("numba") is not None, reason="needs numba")
def test_numba_tells_its_instructions_threads_and_cache() -> None:
    found = describe(backends.get("numba", num_threads=1))

    assert found["threads"] == 1
    assert found["instructions"] in list(found["available"])  # type: ignore[call-overload]  # a list
    assert found["measured_products"] == 0
    assert found["kernel_cache"] is None or Path(str(found["kernel_cache"])).is_dir()


@pytest.mark.skipif(backends.unavailable("torch") is not None, reason="needs torch")
def test_torch_tells_its_threads_and_the_type_of_its_products() -> None:
    from nanochat.backends.torch.ops import TorchOps

    found = describe(TorchOps("cpu"))

    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert isinstance(found["threads"], int)
    assert TorchOps("cpu").free_bytes is None


@pytest.mark.skipif(backends.unavailable("onnx") is not None, reason="needs onnxruntime")
def test_a_graph_tells_its_providers_and_threads() -> None:
    model = nanochat.from_pretrained("nanochat-tiny", backend="onnx", num_threads=1)

    found = describe(model.engine)

    assert found["backend"] == "onnx"
    assert found["providers"] == ["CPUExecutionProvider"]
    assert found["threads"] == 1
    assert "onnxruntime" in found["versions"]  # type: ignore[operator]  # a dict
