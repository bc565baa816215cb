"""A backend is chosen by name, environment or machine, and never silently."""

import sys

import pytest

from nanochat import backends
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.errors import BackendError


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take away every framework and the environment variable."""
    for module in ("torch", "mlx", "mlx.core", "numba"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delenv("NANOCHAT_BACKEND", raising=False)
    return monkeypatch


def test_the_reference_can_always_run() -> None:
    assert backends.unavailable("reference") is None


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize("name", ["torch", "mlx", "numba"])
def test_an_absent_package_is_a_reason_with_a_fix(name: str) -> None:
    reason = backends.unavailable(name)

    assert reason is not None
    assert reason.startswith(f"the package {name} is not installed: pip install ")


def test_an_unknown_backend_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(
        BackendError, match=r"unknown backend 'cuda': choose auto or one of torch, mlx"
    ):
        backends.get("cuda")


@pytest.mark.usefixtures("bare_machine")
def test_a_backend_that_cannot_run_is_refused_with_every_reason() -> None:
    with pytest.raises(BackendError) as caught:
        backends.get("numba")

    message = str(caught.value)
    assert "backend 'numba' cannot run here" in message
    assert "torch: the package torch is not installed" in message
    assert "reference: available" in message


@pytest.mark.usefixtures("bare_machine")
def test_auto_ends_at_the_reference_and_says_why() -> None:
    name, reason = backends.choose()

    assert name == "reference"
    assert "pip install numba" in reason
    assert isinstance(backends.get(), ReferenceOps)


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_empty_environment_variable_leaves_the_choice_to_the_machine(
    bare_machine: pytest.MonkeyPatch, value: str
) -> None:
    bare_machine.setenv("NANOCHAT_BACKEND", value)

    assert backends.choose()[1].startswith("nothing faster can run")


def test_the_environment_variable_decides_for_auto(bare_machine: pytest.MonkeyPatch) -> None:
    bare_machine.setenv("NANOCHAT_BACKEND", "reference")

    assert backends.choose() == ("reference", "NANOCHAT_BACKEND is set")


def test_an_argument_overrides_the_environment_variable(bare_machine: pytest.MonkeyPatch) -> None:
    bare_machine.setenv("NANOCHAT_BACKEND", "numba")

    assert backends.choose("reference") == ("reference", "asked for")


@pytest.mark.parametrize(
    ("value", "name", "wanted"),
    [("", "auto", "auto"), ("mlx", "auto", "mlx"), ("mlx", "numba", "numba")],
    ids=["nothing", "environment", "argument"],
)
def test_what_is_wanted_is_known_before_a_model_is_there(
    bare_machine: pytest.MonkeyPatch, value: str, name: str, wanted: str
) -> None:
    bare_machine.setenv("NANOCHAT_BACKEND", value)

    assert backends.wanted(name) == wanted


@pytest.mark.parametrize("value", ["cuda", "torch"], ids=["unknown", "not installed"])
def test_the_environment_variable_never_falls_back_silently(
    bare_machine: pytest.MonkeyPatch, value: str
) -> None:
    bare_machine.setenv("NANOCHAT_BACKEND", value)

    with pytest.raises(BackendError, match=value):
        backends.get()


def test_more_threads_than_cores_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nanochat.backends.num_cores", lambda: 1)

    backends.get("numba", num_threads=1)
    assert not caplog.messages

    backends.get("numba", num_threads=2)
    assert caplog.messages == [
        "2 threads for 1 core: more than one a core wait for each other, and are slower"
    ]
