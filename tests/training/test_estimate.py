"""What a run takes is counted before it begins: the same as when it runs."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.data.batch import Layout
from nanochat.presets import preset
from nanochat.shapes import num_parameters
from nanochat.training.estimate import estimate, flops_per_token
from nanochat.training.loop import Trainer
from nanochat.training.recipe import recipe_from_dict, recipe_to_dict
from tests.training.runs import command_here, recipe


@pytest.mark.parametrize(
    "matrices",
    [
        {},
        {"average": "int8", "row_beta": 0.9},
        {"rule": "adamw", "rank": 32},
        {"rank": 32, "average": "int8"},
    ],
    ids=str,
)
def test_what_is_kept_of_parameters_is_what_was_counted(
    matrices: dict[str, object], data: Path, tmp_path: Path
) -> None:
    optimizer = {"head": {"rule": "lion"}, "matrices": matrices}
    settings = recipe(optimizer=optimizer, model={"tie_embeddings": False})
    found = estimate(settings)
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    parameters = [*trainer.model.parameters()]
    trainer._advance()
    state = [t for s in trainer.updater.states().values() for t in s.kept.values()]

    assert found.parameters == found.trained == num_parameters(settings.model)
    assert sum(p.nbytes for p in parameters) == found.gradients
    assert sum(t.nbytes for t in state) == found.optimizer
    # Norms and the logits of mHC are not rounded, and have no second copy.
    plain = sum(
        p.nbytes for name, p in trainer.model.named_parameters() if not _rounded(trainer, name)
    )
    assert 2 * found.gradients - plain == found.weights


def _rounded(trainer: Trainer, name: str) -> bool:
    before = trainer.model.get_parameter(name).detach().clone()
    with trainer.model.rounded():
        return not torch.equal(trainer.model.get_parameter(name), before)


def test_operations_are_those_of_the_products(data: Path, tmp_path: Path) -> None:
    settings = recipe(model={"num_streams": 1, "num_ahead": 1})
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    batch = trainer.shards.batch(0, 2, Layout(length=64))
    inputs, targets = map(torch.from_numpy, (batch.inputs, batch.targets))

    with trainer.model.rounded(), FlopCounterMode(display=False) as counter:
        trainer._terms(inputs, targets)["objective"].backward()

    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    # The head's stand in an operator of their own, and attention sees half of the others.
    heads = 2 * 3 * 2 * 300 * 128
    attention = 3 * 3 * 4 * 128 * 64 / 2
    sizes = {name: p.numel() for name, p in trainer.model.named_parameters() if p.ndim > 1}
    assert products == 2 * 64 * 6 * (sum(sizes.values()) - sizes["embedding"])
    expected = products / 128 + heads + attention
    assert estimate(settings).flops_per_token == pytest.approx(expected, rel=0.01)


def test_layers_that_are_computed_again_take_less_and_shorter_sequences_as_well() -> None:
    usual = recipe()
    again = recipe(run={"activation_checkpointing": True})
    one = recipe(data={"microbatch": 1})

    assert estimate(again).activations <= estimate(usual).activations
    assert estimate(one).bytes < estimate(usual).bytes + 1


def test_a_run_of_a_time_is_counted_for_its_steps_even_if_they_are_too_few_to_warm_up() -> None:
    words = ["--preset", "tiny", "--set", "budget=1s", "--set", "schedule.warmup_steps=900"]

    done = command_here("train", *words, "--dry-run", "--json", "--threads", "1")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seconds"] == 1
    assert 1 <= found["steps"] < 900
    assert found["tokens"] == found["steps"] * 16 * 512
    assert found["flops"] == found["tokens"] * flops_per_token(preset("tiny"), 512)


def test_an_extra_head_takes_as_much_as_a_layer() -> None:
    usual, deeper, ahead = (
        estimate(recipe(model=model, data={"batch_size": 8, "length": 512})).activations
        for model in (
            {"num_streams": 1},
            {"num_streams": 1, "num_layers": 3},
            {"num_streams": 1, "num_ahead": 1},
        )
    )

    assert ahead - usual == pytest.approx(deeper - usual, rel=0.01)


def test_the_phase_that_takes_most_decides_and_operations_are_summed() -> None:
    fields = recipe_to_dict(recipe(schedule={"warmup_steps": 0, "decay_steps": 0}))
    phases = [{"steps": 10}, {"data": {"length": 128}}]
    both = estimate(recipe_from_dict({**fields, "phases": phases}))
    short, long = (
        estimate(
            recipe_from_dict(
                {**fields, "steps": steps, "data": {"batch_size": 2, "length": length}}
            )
        )
        for steps, length in ((10, 64), (20, 128))
    )

    assert both.tokens == short.tokens + long.tokens
    assert both.flops == short.flops + long.flops
    assert both.activations == pytest.approx(long.activations, rel=1e-4)


def test_masks_of_documents_take_memory() -> None:
    plain, masked = (estimate(recipe(data={"document_masks": each})) for each in (False, True))

    assert masked.activations > plain.activations
