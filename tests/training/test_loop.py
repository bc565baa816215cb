"""Whole runs on a small corpus: learning, exact resumption after a kill, and errors."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounterWithBackend

from nanochat import checkpoint
from nanochat.data.batch import Layout
from nanochat.data.prepare import prepare
from nanochat.errors import BackendError, ConfigError, SaveError, TrainingError
from nanochat.presets import preset
from nanochat.training.batches import microbatches
from nanochat.training.layers import compiled_layer, compiling
from nanochat.training.loop import Trainer
from nanochat.training.recipe import Recipe, recipe_from_dict, recipe_to_dict
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import load_snapshot
from tests.training.runs import command_here, entries, losses, options, quiet, recipe


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert Trainer(recipe(), data, run, num_threads=1, compile_model=False).run(quiet)
    return run


@pytest.fixture
def stopped(short: Path, tmp_path: Path) -> Path:
    """The snapshot of a run of twelve steps, to change."""
    return Path(shutil.copytree(short / "snapshots" / "12", tmp_path / "run" / "snapshots" / "12"))


@pytest.fixture(scope="module")
def short(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "short"
    assert Trainer(recipe(steps=12), data, run, num_threads=1, compile_model=False).run(quiet)
    return run


def test_training_learns_and_writes_a_model_that_loads(whole: Path) -> None:
    assert losses(whole)[30] < 0.7 * losses(whole)[1]
    assert checkpoint.load(whole / "model")[0] == recipe().model


def test_the_log_holds_held_out_bits_and_the_state_of_the_streams(short: Path) -> None:
    lines = [json.loads(line) for line in (short / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "held_out_bits_per_byte" in line][-1]
    step = [line for line in lines if "loss" in line][-1]
    assert 0 < last["held_out_bits_per_byte"] < 8
    assert min(last["stream_divergence"]) > 0.01
    assert last["composite_gain"] > 1
    assert step["gradient_norm_mix"] > 0


def test_the_unquantised_twin_trains_on_the_same_batches(data: Path, tmp_path: Path) -> None:
    read: dict[str, list[torch.Tensor]] = {"float": [], "ternary": []}
    for weights, seen in read.items():
        settings = recipe(steps=3, precision={"weights": weights}, schedule={"decay_steps": 0})
        run = Trainer(settings, data, tmp_path / weights, num_threads=1, compile_model=False)

        def note(_: object, inputs: tuple[torch.Tensor, ...], seen: Any = seen) -> None:
            seen.append(inputs[0])

        run.model.register_forward_pre_hook(note)
        assert run.run(quiet)

    assert len(read["float"]) > 3
    assert torch.stack(read["float"]).equal(torch.stack(read["ternary"]))
    assert not (tmp_path / "float" / "model").exists()


@pytest.mark.parametrize("weights", ["float", "ternary"])
def test_microbatches_have_the_gradients_of_the_batch(
    weights: str, data: Path, tmp_path: Path
) -> None:
    found = []
    for size in (0, 1, 2):
        settings = recipe(
            precision={"weights": weights}, data={"batch_size": 4, "microbatch": size}
        )
        run = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
        terms = run._gradients(run.shards.batch(0, 4, Layout(length=64)))
        found.append({**terms, **run.updater.gradients()})

    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_run_in_microbatches_has_the_losses_of_one_in_batches(data: Path, tmp_path: Path) -> None:
    for size in (0, 1):
        settings = recipe(precision={"weights": "float"}, data={"microbatch": size})
        run = Trainer(settings, data, tmp_path / f"{size}", num_threads=1, compile_model=False)
        assert run.run(quiet)

    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "0"), rel=1e-5)


def infinite(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * float("inf")


@pytest.mark.parametrize("where", ["loss", "gradient_norm"])
def test_nothing_is_updated_or_saved_after_a_number_that_is_not_finite(
    where: str, data: Path, tmp_path: Path
) -> None:
    trainer = Trainer(recipe(), data, tmp_path, num_threads=1, compile_model=False)
    parameter = trainer.model.get_parameter("norm")
    if where == "loss":
        parameter.data[3] = float("nan")
    else:
        parameter.register_hook(infinite)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    with pytest.raises(TrainingError, match=rf"^{where} is (nan|inf) at step 0: must be finite"):
        trainer.run(quiet)

    assert not (tmp_path / "snapshots").exists()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p.nan_to_num(), before[name].nan_to_num()), name


def test_an_evaluation_that_is_not_finite_is_not_logged(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(), data, tmp_path, num_threads=1, compile_model=False)
    trainer.model.get_parameter("norm").data[3] = float("nan")

    with pytest.raises(TrainingError, match=r"^held_out_nats_per_token is nan at step 0"):
        trainer.evaluate(2)


def test_a_parameter_that_is_not_finite_is_not_saved(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(), data, tmp_path, num_threads=1, compile_model=False)
    trainer.save()
    trainer.model.get_parameter("layers.1.mixer.q").data[0, 0] = float("inf")

    with pytest.raises(TrainingError, match=r"^layers\.1\.mixer\.q is inf at step 0"):
        trainer.save()

    assert load_snapshot(tmp_path).parameters["layers.1.mixer.q"].isfinite().all()


def test_a_run_is_saved_although_new_tensors_are_elsewhere(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        recipe(steps=2, schedule={"decay_steps": 0}),
        data,
        tmp_path,
        num_threads=1,
        compile_model=False,
    )
    assert trainer.run(quiet)

    # As on the CPU when the model is on a GPU.
    with torch.device("meta"):
        trainer.save()

    assert load_snapshot(tmp_path).optimizer["norm"].updates == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not here")
def test_a_run_on_a_gpu_is_saved_and_goes_on(data: Path, tmp_path: Path) -> None:
    def stop(entry: LogEntry) -> None:
        if entry.step == 12:
            signal.raise_signal(signal.SIGINT)

    assert not Trainer(recipe(), data, tmp_path, device="cuda", compile_model=False).run(stop)

    resumed = Trainer(recipe(), data, tmp_path, start=tmp_path, device="cuda", compile_model=False)

    assert (resumed.step, resumed.updater.states()["norm"].updates) == (12, 12)
    assert resumed.run(quiet)


# The command, in a process that is killed in the thirteenth step, three after a snapshot.
KILLED = """
import os, signal, sys
from nanochat.cli import main
from nanochat.training.batches import microbatches
from nanochat.training.layers import compiled_layer, compiling
from nanochat.training.loop import Trainer

advance = Trainer._advance

def advance_or_die(self):
    if self.step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)

Trainer._advance = advance_or_die
main(sys.argv[1:])
"""


def test_a_killed_run_resumes_with_the_same_losses(whole: Path, data: Path, tmp_path: Path) -> None:
    settings, killed = tmp_path / "recipe.json", tmp_path / "killed"
    settings.write_text(json.dumps(recipe_to_dict(recipe())))
    words = [*options(data, killed), str(settings)]
    first = subprocess.run(
        [sys.executable, "-c", KILLED, *words], stderr=subprocess.DEVNULL, check=False
    )
    reached = max(losses(killed))

    resumed = command_here(*options(data, killed), "--resume")

    assert (first.returncode, reached) == (-signal.SIGKILL, 12)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(killed) == losses(whole)


def test_a_branch_starts_from_another_runs_snapshot(data: Path, tmp_path: Path) -> None:
    first, branch = tmp_path / "first", tmp_path / "branch"
    Trainer(recipe(steps=20), data, first, num_threads=1, compile_model=False).run(quiet)

    trainer = Trainer(
        recipe(steps=25),
        data,
        branch,
        start=first / "snapshots" / "20",
        num_threads=1,
        compile_model=False,
    )

    assert trainer.step == 20
    assert trainer.run(quiet)


@pytest.mark.parametrize("start", ["base", "base/snapshots/12"])
def test_a_branch_may_lie_around_the_run_that_it_starts_from(
    start: str, short: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(short, tmp_path / "base")

    assert Trainer(
        recipe(steps=14),
        data,
        tmp_path,
        start=tmp_path / start,
        num_threads=1,
        compile_model=False,
    ).run(quiet)

    assert entries(tmp_path)[0]["recipe"]["steps"] == 14


def test_the_last_snapshot_of_a_run_goes_on_with_it(
    short: Path, data: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(short, tmp_path / "run"))
    start = run / "snapshots" / "12"

    assert Trainer(
        recipe(steps=14), data, run, start=start, num_threads=1, compile_model=False
    ).run(quiet)

    assert sorted(losses(run)) == list(range(1, 15))


def test_a_branch_from_an_earlier_snapshot_of_its_own_directory_is_refused(
    short: Path, data: Path
) -> None:
    with pytest.raises(TrainingError, match="10 is not the last snapshot: pass another directory"):
        Trainer(recipe(), data, short, start=short / "snapshots" / "10", compile_model=False)


def test_a_damaged_snapshot_is_named(data: Path, tmp_path: Path) -> None:
    Trainer(
        recipe(steps=5, schedule={"decay_steps": 0}),
        data,
        tmp_path,
        num_threads=1,
        compile_model=False,
    ).run(quiet)
    file = tmp_path / "snapshots" / "5" / "parameters.safetensors"
    file.write_bytes(file.read_bytes()[:1000])

    with pytest.raises(ValueError, match=r"5/parameters\.safetensors is damaged"):
        Trainer(recipe(), data, tmp_path, start=tmp_path, compile_model=False)


def test_a_snapshot_of_another_model_is_refused(short: Path, data: Path) -> None:
    other = recipe(model={"num_layers": 1})

    with pytest.raises(TrainingError, match="another model"):
        Trainer(other, data, short, start=short, compile_model=False)


def test_other_data_than_the_snapshot_saw_is_refused(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "other.rs").write_text("fn main() { loop { break } }\n" * 400)
    (tmp_path / "another.rs").write_text("struct S { x: u8, y: [u8; 4] }\n" * 400)
    prepare([str(tmp_path / "*.rs")], tmp_path / "tokens", 300, held_out=0.4)

    with pytest.raises(TrainingError, match="has seen other data"):
        Trainer(recipe(), tmp_path / "tokens", tmp_path, start=stopped, compile_model=False)


def test_a_recipe_that_ends_before_the_snapshot_is_refused(
    stopped: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"at step 12 and the recipe ends at 12"):
        Trainer(recipe(steps=12), data, tmp_path / "branch", start=stopped, compile_model=False)


def test_a_snapshot_without_its_optimizer_is_refused(
    stopped: Path, data: Path, tmp_path: Path
) -> None:
    save_file({}, stopped / "optimizer.safetensors")

    with pytest.raises(TrainingError, match="no optimizer state"):
        Trainer(recipe(), data, tmp_path / "branch", start=stopped, compile_model=False)


def test_a_branch_writes_its_own_recipe(stopped: Path, data: Path, tmp_path: Path) -> None:
    branch = tmp_path / "branch"

    Trainer(recipe(steps=14), data, branch, start=stopped, num_threads=1, compile_model=False).run(
        quiet
    )

    first = json.loads((branch / "log.jsonl").read_text().splitlines()[0])
    assert first["recipe"]["steps"] == 14


def test_a_run_does_not_move_in_with_its_data(data: Path) -> None:
    with pytest.raises(ConfigError, match="holds prepared data"):
        Trainer(recipe(), data, data, compile_model=False)


def test_a_directory_that_cannot_be_made_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = Trainer(recipe(), data, tmp_path / "file", num_threads=1, compile_model=False)

    with pytest.raises(SaveError, match=r"cannot write .*file"):
        trainer.run(quiet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_device_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="device 'cuda' is not here"):
        Trainer(recipe(), data, tmp_path, device="cuda", compile_model=False)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    small = recipe(model={"vocab_size": 64})

    with pytest.raises(ConfigError, match="vocab_size=64"):
        Trainer(small, data, tmp_path, compile_model=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"^steps=0: must be at least 1"),
        ({"schedule": {"warmup_steps": 25, "decay_steps": 25}}, "exceed steps=30"),
        ({"data": {"length": 5000}}, "context_length"),
        ({"data": {"batch_size": 3, "microbatch": 2}}, r"microbatch=2 does not divide .*size=3"),
        ({"data": 7}, "data=7: must be a group of settings"),
        ({"optimizer": {"matrices": {"rate": float("nan")}}}, r"matrices\.rate=nan"),
        ({"optimizer": {"norms": {"rule": "lion", "epsilon": 1}}}, r"norms\.epsilon"),
        ({"optimizer": {"norms": {"rule": "sgd"}}}, "choose one of 'muon', 'adamw', 'lion'"),
        ({"optimizer": {"matrices": {"iterations": 6}}}, "iterations=6: must be at most 5"),
        ({"precision": {"weights": "int4"}}, "weights='int4': choose 'ternary' or 'float'"),
        (
            {"stpes": 3},
            r"there is no setting 'stpes' in a recipe \(did you mean steps\?\): correct",
        ),
        ({"colour": 3}, "there is no setting 'colour' in a recipe: correct or remove it"),
        ({"model": 3}, "not a recipe: its model is 3"),
        ({"objective": {"balanse": 1}}, r"'objective\.balanse' .*did you mean balance\?"),
        ({"run": {"evaluation_windows": 0}}, "evaluation_windows=0"),
        ({"seed": 1.5}, "seed=1.5: write a whole number"),
        ({"steps": True}, "steps=True"),
        ({"optimizer": {"head": {"rate": "abc"}}}, "rate='abc': write a number"),
        ({"optimizer": {"head": {"weight_decay": float("nan")}}}, "weight_decay=nan"),
        ({"objective": {"balance": "x"}}, "balance='x'"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_a_recipe_survives_json() -> None:
    original = Recipe(model=preset("tiny"), steps=100)

    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(original)))) == original


def test_a_layer_compiles_once_and_without_a_graph_break(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(), data, tmp_path, num_threads=1, compile_model=False)
    batch = trainer.shards.batch(0, 2, Layout(length=64))
    inputs, targets = map(torch.from_numpy, (batch.inputs, batch.targets))
    counter = CompileCounterWithBackend("aot_eager")
    expected = trainer._terms(inputs, targets)

    # The backend that does not generate code: the graph is what is tested, and it starts in a second.
    trainer.model.layer = compiled_layer(backend=counter, fullgraph=True)
    with trainer.model.rounded(), compiling():
        found = trainer._terms(inputs, targets)

    torch.testing.assert_close(found, expected)
    # Two layers, and the first has streams that are equal.
    assert counter.frame_count == 1


def test_layers_that_are_computed_again_give_the_same_and_keep_less(
    data: Path, tmp_path: Path
) -> None:
    kept, found = [], []
    for again in (False, True):
        changed = recipe(run={"activation_checkpointing": again})
        trainer = Trainer(changed, data, tmp_path / str(again), num_threads=1, compile_model=False)
        ((_, batch),) = microbatches(trainer.shards.batch(0, 2, Layout(length=64)), 0, "cpu")
        parameters = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        saved: dict[int, int] = {}

        def note(x: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with trainer.model.rounded():
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                loss = trainer._terms(*batch)["objective"]
            loss.backward()
        kept.append(sum(size for place, size in saved.items() if place not in parameters))
        found.append(trainer.updater.gradients())

    assert kept[1] < kept[0] / 2
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
