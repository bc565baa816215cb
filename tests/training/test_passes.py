"""A pass runs what its objective asks for, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.model import run_layer
from nanochat.training.loop import Trainer
from tests.training.runs import batch_of, recipe

# Two layers, and an extra head of one.
HEADS: dict[str, Any] = {"num_ahead": 1}
GATE: dict[str, Any] = {"exits": "improvement"}


def trainer(data: Path, run: Path, **settings: Any) -> tuple[Trainer, list[int]]:
    """A run without compiled layers, and how many tokens each layer that runs has read."""
    found = Trainer(recipe(**settings), data, run, num_threads=1, compile_model=False)
    runs: list[int] = []

    def counted(x: torch.Tensor, *others: Any) -> Any:
        runs.append(x.shape[0] * x.shape[1])
        return run_layer(x, *others)

    found.model.layer = counted
    return found, runs


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"model": HEADS}, 3),
        ({"model": {**HEADS, "ahead_kind": "sequential"}}, 3),
        ({"model": HEADS, "objective": {"ahead": 0}}, 2),
        ({"model": {**HEADS, "ahead_kind": "sequential"}, "objective": {"ahead": 0}}, 2),
        (
            {
                "model": HEADS,
                "objective": {"keep_tokens": 0.5, "drop_attention_gradients": True},
            },
            2 + 3,
        ),
        (
            {
                "model": {**HEADS, "loop_count": 2},
                "objective": {**GATE, "keep_tokens": 0.5, "drop_attention_gradients": True},
                "optimizer": {"only": ["exits"]},
            },
            4,
        ),
    ],
    ids=str,
)
def test_extra_heads_run_where_they_have_a_factor(
    settings: dict[str, Any], count: int, data: Path, tmp_path: Path
) -> None:
    run, runs = trainer(data, tmp_path, **settings)

    run._terms(*batch_of(run))

    assert len(runs) == count


def test_extra_heads_do_not_run_in_an_evaluation(data: Path, tmp_path: Path) -> None:
    run, runs = trainer(data, tmp_path, model={**HEADS, "num_streams": 1})

    run.evaluate(2)

    assert len(runs) == 2


def test_a_gate_that_is_trained_alone_asks_no_teacher(data: Path, tmp_path: Path) -> None:
    gate = {"objective": {**GATE, "distillation": 1}, "optimizer": {"only": ["exits"]}}
    run, _ = trainer(
        data,
        tmp_path,
        model={"loop_count": 2},
        teacher={"phase": 1},
        phases=[{"steps": 10}, {"steps": 20, **gate}],
    )
    objective = run._stages[1].recipe.objective

    # The teacher is not there before the first phase ends.
    found = run._passes.terms(run.model, objective, *batch_of(run))

    assert found["objective"] is found["exit_improvement"]
