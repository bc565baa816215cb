"""A model trains on packed documents as if each were alone, and an update weighs all its targets alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.data.batch import Batch, Layout
from nanochat.data.prepare import prepare
from nanochat.training.batches import microbatches
from nanochat.training.loop import Trainer
from tests.training.runs import entries, quiet, recipe

PACKED = {"packing": "best-fit", "length": 128, "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of 1 to 6 lines."""
    folder = tmp_path_factory.mktemp("short")
    for i in range(60):
        (folder / f"{i}.rs").write_text("".join(f"let x{j} = {i};\n" for j in range(1 + i % 6)))
    prepare([folder], folder / "tokens", 300, held_out=0.1)
    return folder / "tokens"


def _stop(run: Trainer) -> None:
    if run.step == 7:
        raise KeyboardInterrupt


def trainer(text: Path, run: Path, **settings: Any) -> Trainer:
    return Trainer(
        recipe(precision={"weights": "float", "products": "float32"}, **settings),
        text,
        run,
        num_threads=1,
        compile_model=False,
    )


def uneven(run: Trainer) -> Batch:
    """Four sequences, of which one has few targets and one none."""
    batch = run.shards.batch(0, 4, Layout(length=128, packing="best-fit"))
    batch.targets[1, 5:] = -1
    batch.targets[2] = -1
    return batch


def nats(run: Trainer, batch: Batch) -> float:
    ((_, inputs),) = microbatches(batch, 0, "cpu")
    with torch.no_grad():
        return float(run._terms(*inputs)["loss"]) * int((batch.targets >= 0).sum())


def test_packed_documents_have_the_losses_that_they_have_alone(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, data=PACKED)
    batch = run.shards.batch(0, 4, Layout(length=128, packing="best-fit"))
    assert batch.segments is not None

    together = nats(run, batch)

    alone = 0.0
    for row, numbers in enumerate(batch.segments):
        for number in np.unique(numbers):
            places = numbers == number
            inputs, targets = batch.inputs[row, places], batch.targets[row, places]
            alone += nats(run, Batch(inputs=inputs[None], targets=targets[None]))
    assert batch.segments.max() > 0
    assert together == pytest.approx(alone, rel=1e-6)


def test_no_target_further_on_is_of_another_document(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, data=PACKED, objective={"later_tokens": [1.0]})
    batch = run.shards.batch(0, 4, Layout(length=128, packing="best-fit"))
    assert batch.segments is not None

    def mean(batch: Batch) -> float:
        ((_, inputs),) = microbatches(batch, 0, "cpu", farthest=2)
        with torch.no_grad():
            return float(run._terms(*inputs)["later_tokens"])

    alone, count = 0.0, 0
    for row, numbers in enumerate(batch.segments):
        for number in np.unique(numbers):
            places = numbers == number
            inputs, targets = batch.inputs[row, places], batch.targets[row, places]
            some = int((targets >= 0).sum())
            alone += some * mean(Batch(inputs=inputs[None], targets=targets[None]))
            count += some
    assert mean(batch) == pytest.approx(alone / count, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": {"later_tokens": [0.5, 0.25]}},
        {"model": {"num_ahead": 2}},
        {"objective": {"z_loss": 0.1, "entropy": 0.1}, "model": {"loop_count": 2}},
    ],
    ids=str,
)
def test_an_update_weighs_all_targets_alike_however_it_is_computed(
    settings: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    found = []
    for size in (0, 1, 2):
        run = trainer(data, tmp_path, **settings, data={**PACKED, "microbatch": size})
        found.append({**run._gradients(uneven(run)), **run.updater.gradients()})

    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_changes_nothing(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, data={**PACKED, "microbatch": 2})
    batch = run.shards.batch(0, 4, Layout(length=128, packing="best-fit"))
    batch.targets[:] = -1

    found = run._gradients(batch)

    assert float(found["loss"]) == 0
    assert not any(gradient.any() for gradient in run.updater.gradients().values())


@pytest.mark.parametrize(
    "layout", [{"packing": "best-fit"}, {"document_masks": True}], ids=["packed", "masked"]
)
def test_a_run_on_masked_documents_resumes_exactly(
    layout: dict[str, object], data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 12, "data": {**layout, "length": 64}}
    whole = trainer(data, tmp_path / "whole", **settings)
    assert whole.run(quiet)
    cut = recipe(precision={"weights": "float", "products": "float32"}, **settings)

    first = Trainer(cut, data, tmp_path / "cut", num_threads=1, compile_model=False)
    first._interruption.check = lambda: _stop(first)  # type: ignore[method-assign]
    assert not first.run(quiet)
    again = Trainer(
        cut, data, tmp_path / "cut", start=tmp_path / "cut", num_threads=1, compile_model=False
    )
    assert again.run(quiet)

    assert again.step == 12
    assert entries(tmp_path / "cut") == entries(tmp_path / "whole")
