"""A snapshot that was written before states had the names of parameters goes on as it would have."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat.errors import TrainingError
from nanochat.training.loop import Trainer
from nanochat.training.recipe import recipe_from_dict, recipe_to_dict
from nanochat.training.snapshot import load_snapshot, save_snapshot
from nanochat.training.updater import State
from tests.training.runs import losses, quiet

# Of commit 015784d, after four steps.
OLD = Path(__file__).parent / "snapshot-2"
# What the same commit went on with, on a processor with AVX-512.
LOSSES = {5: 4.747600555419922, 6: 4.143831729888916, 7: 4.026089668273926, 8: 3.4163599014282227}


def go_on(data: Path, run: Path, start: Path, **changes: object) -> Trainer:
    settings = recipe_from_dict(
        {**recipe_to_dict(load_snapshot(OLD).recipe), "steps": 8, **changes}
    )
    trainer = Trainer(settings, data, run, start=start, num_threads=1, compile_model=False)
    assert trainer.run(quiet)
    return trainer


def require_same(states: Mapping[str, State], expected: Mapping[str, State]) -> None:
    assert states.keys() == expected.keys()
    for name, state in expected.items():
        found = states[name]
        assert (found.rule, found.updates) == (state.rule, state.updates)
        assert found.kept.keys() == state.kept.keys()
        assert all(torch.equal(found.kept[kind], tensor) for kind, tensor in state.kept.items())


def test_it_goes_on_with_the_losses_that_it_would_have_had(data: Path, tmp_path: Path) -> None:
    go_on(data, tmp_path, OLD)

    # Another processor adds in another order, and a rounding that flips grows from step to step.
    assert losses(tmp_path) == pytest.approx(LOSSES, rel=2e-3)
    assert losses(tmp_path)[5] == pytest.approx(LOSSES[5], rel=1e-5)


def test_it_is_written_anew_with_the_same_state(tmp_path: Path) -> None:
    old = load_snapshot(OLD)

    save_snapshot(tmp_path / "snapshot", old)

    new = load_snapshot(tmp_path)
    assert set(new.parameters) == set(old.optimizer)
    assert (new.step, new.recipe) == (old.step, old.recipe)
    require_same(new.optimizer, old.optimizer)


def test_states_without_the_name_of_their_rule_have_that_of_the_recipe(tmp_path: Path) -> None:
    save_snapshot(tmp_path, load_snapshot(OLD))
    states = load_file(tmp_path / "optimizer.safetensors")
    # As the third format had them, and one that was not updated yet.
    third = {
        f"{key.split('|')[0]}|{key.split('|')[2]}": tensor
        for key, tensor in states.items()
        if not key.startswith("norm|")
    }
    save_file(third, tmp_path / "optimizer.safetensors")
    text = json.loads((tmp_path / "snapshot.json").read_text())
    (tmp_path / "snapshot.json").write_text(json.dumps({**text, "format": 3}))

    found = dict(load_snapshot(tmp_path).optimizer)

    norm = found.pop("norm")
    assert (norm.rule, norm.updates, norm.kept) == ("adamw", 0, {})
    expected = dict(load_snapshot(OLD).optimizer)
    del expected["norm"]
    require_same(found, expected)


def test_states_go_on_under_other_rates_and_begin_anew_under_another_rule(
    data: Path, tmp_path: Path
) -> None:
    other = {"matrices": {"rate": 0.01}, "norms": {"rule": "lion"}}

    trainer = go_on(data, tmp_path, OLD, optimizer=other)

    states = trainer.updater.states()
    assert states["layers.0.mixer.q"].updates == 8
    assert states["norm"].kept.keys() == {"average"}
    assert states["norm"].updates == 4


def test_a_state_that_is_not_as_its_rule_keeps_it_is_refused(data: Path, tmp_path: Path) -> None:
    snapshot = load_snapshot(OLD)
    norm = State(rule="adamw", updates=4, kept={"average": torch.zeros(64)})
    optimizer = {**snapshot.optimizer, "norm": norm}
    damaged = type(snapshot)(**{**vars(snapshot), "optimizer": optimizer})
    save_snapshot(tmp_path / "snapshot", damaged)

    with pytest.raises(TrainingError, match="no optimizer state of norm as adamw keeps it"):
        go_on(data, tmp_path / "run", tmp_path)


def test_stacks_lie_in_memory_as_one_and_parameters_are_views_of_them(
    data: Path, tmp_path: Path
) -> None:
    trainer = go_on(data, tmp_path, OLD)

    names = [f"layers.0.{name}" for name in ("mixer.q", "mixer.k", "network.up")]
    addresses = {trainer.model.get_parameter(n).untyped_storage().data_ptr() for n in names}
    assert len(addresses) == 1
