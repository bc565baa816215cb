"""Settings that do nothing are named before a run begins."""

from pathlib import Path
from typing import Any

import pytest

from nanochat.training.plan import plan
from tests.training.runs import MODEL

FIELDS: dict[str, Any] = {"model": {"vocab_size": 300, **MODEL}, "steps": 60}
CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.toml"))


def warnings(folder: Path, caplog: pytest.LogCaptureFixture, **changes: Any) -> list[str]:
    fields = {**FIELDS, **changes, "model": {**FIELDS["model"], **changes.get("model", {})}}
    plan(fields, data=folder, out=folder / "run")
    return caplog.messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": {"ahead": 0.5}},
            "objective.ahead=0.5 does nothing: the model has no extra heads: set model.num_ahead=1, say",
        ),
        (
            {"objective": {"exit_entropy": 0.1}},
            "objective.exit_entropy=0.1 does nothing: the model has no loop: set model.loop_count=2, say",
        ),
        (
            {"objective": {"exit_slope": 9.0}, "model": {"loop_count": 2}},
            'objective.exit_slope=9 does nothing: objective.exits is not "improvement"',
        ),
        (
            {"objective": {"balance": 0.0}},
            "objective.balance=0 does nothing: the model has no experts",
        ),
        (
            {"objective": {"temperature": 2}},
            "objective.temperature=2 does nothing: no phase has objective.distillation",
        ),
        (
            {"optimizer": {"router": {"rate": 0.1}}},
            "optimizer.router does nothing: the model has no router",
        ),
        (
            {"optimizer": {"head": {"rate": 0.1}}},
            "optimizer.head does nothing: the head is the embedding, which optimizer.embedding is for",
        ),
    ],
    ids=str,
)
def test_a_setting_without_an_effect_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings(tmp_path, caplog, **changes) == [message]


def test_a_setting_that_serves_in_one_phase_is_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phases = [{"steps": 30}, {"steps": 30, "objective": {"distillation": 1}}]

    assert not warnings(tmp_path, caplog, phases=phases, objective={"temperature": 2})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_no_configuration_that_is_here_has_such_a_setting(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan(config, data=tmp_path, out=tmp_path / "run", changes=[])

    assert not caplog.messages
