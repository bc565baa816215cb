"""This file holds training: what a step, an evaluation and a snapshot are of a run on text."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.data.batch import Batch
from nanochat.data.opening import open_splits
from nanochat.errors import ConfigError, TrainingError
from nanochat.init import init
from nanochat.shapes import shapes
from nanochat.training.batches import microbatches
from nanochat.training.budget import Budget
from nanochat.training.course import Course
from nanochat.training.estimate import flops_per_token
from nanochat.training.evaluation import looks, scores
from nanochat.training.fire import fired
from nanochat.training.layers import compiled_layer, compiling, recomputed
from nanochat.training.machine import machine, warn_of_changes
from nanochat.training.model_directory import write_model_directory
from nanochat.training.module import LanguageModel
from nanochat.training.monitoring import code_changes, gradient_norms, sampled_codes
from nanochat.training.passes import Passes
from nanochat.training.phases import learning_rate_factor, num_tokens, stage_at, stages
from nanochat.training.prefetch import Prefetched
from nanochat.training.products import measured, with_products
from nanochat.training.recipe import ENDLESS, Recipe, RunSettings, recipe_to_dict
from nanochat.training.retention import drop_later_snapshots, planned_steps
from nanochat.training.run_log import RunLog
from nanochat.training.setbacks import (
    MOST_RETURNS,
    MOST_SKIPPED,
    NotFiniteError,
    Setbacks,
)
from nanochat.training.snapshot import (
    Snapshot,
    find_snapshot,
    holds_run,
    is_last_snapshot,
    largest_numbers,
    load_record,
    load_snapshot,
    save_snapshot,
    snapshot_directory,
)
from nanochat.training.updater import State, Updater, require_states
from nanochat.weights import Stored, Weights, named_leaves

__all__ = ["Trainer"]


def _ignore(*_: int) -> None:
    """What is told nobody."""


class Trainer(Course):
    """A run: a model, its optimizer and its data, and a directory that they are saved in.

    Parameters
    ----------
    data : Path or dict of str to Path
        Token shards, from `nanochat.data.prepare.prepare`; several by their names in ``data.mixture``.
    directory : Path
        Of the run; in the end it holds ``model/``, too, unless the last phase is unquantised.
    start : Path, optional
        A run, or its snapshot, to go on from; its step counts.
    weights : tree of latent and dense leaves, optional
        To begin with, in place of random ones.
    device : str
        "auto", "cpu", "cuda".
    num_threads : int, optional
        CPU threads of this process, from now on; torch's own choice otherwise. Sums depend on it, so exact resumption
        needs the same number.
    compile_model : bool
        Whether to run through ``torch.compile``: slow to start, several times faster afterwards.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path | Mapping[str, Path],
        directory: Path,
        *,
        start: Path | None = None,
        weights: Weights[Stored] | None = None,
        device: str = "auto",
        num_threads: int | None = None,
        compile_model: bool = True,
    ) -> None:
        if (directory / "data.json").exists():
            raise ConfigError(
                f"{directory} holds prepared data: pass another directory for the run"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        ops = TorchOps(device)
        self._machine = machine(ops.torch_device, compiled=compile_model)
        # What is faster may be another type tomorrow, and a run that goes on has one already.
        self._speeds = None
        if any(stage.recipe.precision.products != "float32" for stage in stages(recipe)):
            self._speeds = measured(recipe.model.width, ops.torch_device)
            recipe = with_products(recipe, self._speeds)
        super().__init__(directory)
        self.recipe = recipe
        self._stages = stages(recipe)
        layouts = {stage.layout for stage in self._stages}
        self.shards, self.held_out = open_splits(data, recipe.model, recipe.seed, layouts)
        self._batches = Prefetched(self.shards, recipe.run.workers)
        weights = weights or init(recipe.model, np.random.default_rng(recipe.seed))
        self.model = LanguageModel(recipe.model, weights, ops)
        self._passes = Passes(
            self._stages, self.shards.tokenizer, directory=directory, device=ops.device
        )
        self._specs = dict(named_leaves(shapes(recipe.model)))
        self._stage = self._stages[0]
        self._enter({} if start is None else self._restore(start))
        # A branch is a run of its own, with a recipe of its own in its log. A run may have ended before its evaluation.
        resumed = start is not None and is_last_snapshot(find_snapshot(start), directory)
        if start is not None and not resumed and holds_run(directory):
            raise TrainingError(
                f"{directory} holds a run, of which {start} is not the last snapshot: pass another directory for a "
                "branch from there"
            )
        if self.step >= recipe.steps and not resumed:
            raise TrainingError(
                f"{start} is at step {self.step} and the recipe ends at {recipe.steps}: ask for more, with "
                f"--set steps={2 * self.step}, say"
            )
        spent = 0.0
        if resumed and start is not None:
            then = load_record(start)
            spent = then.seconds
            warn_of_changes(then.machine, self._machine)
        self._budget = Budget(spent)
        if resumed:
            self._resume()
        if compile_model:
            self.model.layer = compiled_layer()
        if recipe.run.activation_checkpointing:
            self.model.layer = recomputed(self.model.layer)

    def evaluate(
        self, num_windows: int, watch: Callable[[int, int], None] = _ignore
    ) -> dict[str, object]:
        """What the model makes of the first windows of the held-out text; `watch` is that of `run`."""
        data, run = self._stage.recipe.data, self._stage.recipe.run
        found = scores(
            self.model,
            self.held_out,
            batch_size=data.microbatch or data.batch_size,
            layout=self._stage.layout,
            num_windows=num_windows,
            interruption=self._interruption,
            watch=watch,
        )
        # JSON has no word for what is not finite, and no model is worth more steps after it.
        name = "held_out_nats_per_token"
        self._require_finite({name: found[name]})
        first = self.shards.batch(0, 1, self._stage.layout).inputs
        tokens = torch.from_numpy(first).to(self.model.ops.device)
        with self._interruption.abandonable():
            seen = looks(self.model, tokens, self.held_out, run.sample_tokens)
        return {**found, **seen}

    def _write_snapshot(self) -> None:
        snapshot = Snapshot(
            step=self.step,
            phase=self._stage.number,
            seconds=self._budget.spent,
            setbacks=self.setbacks,
            recipe=self.recipe,
            data=self.shards.fingerprint,
            machine=self._machine,
            parameters={name: p.detach() for name, p in self.model.named_parameters()},
            optimizer=self.updater.states(),
        )
        # A finite gradient may still be too large a step.
        self._require_finite(largest_numbers(snapshot))
        save_snapshot(snapshot_directory(self.directory, self.step), snapshot)

    def write_model(self, directory: Path) -> None:
        """Write the model directory: rounded weights, configuration and tokenizer."""
        name = self.directory.resolve().name
        write_model_directory(self.model, self.shards.tokenizer, directory, name=name)

    @property
    def _last_step(self) -> int:
        return self.recipe.steps

    @property
    def _settings(self) -> RunSettings:
        return self.recipe.run

    def _head(self) -> dict[str, object]:
        speeds = {} if self._speeds is None else {"gflops": asdict(self._speeds)}
        return {"recipe": recipe_to_dict(self.recipe), "machine": self._machine | speeds}

    def _opened(self) -> AbstractContextManager[object]:
        return self._batches

    def _evaluate(self, watch: Callable[[int, int], None]) -> dict[str, object]:
        return self.evaluate(self._num_windows(), watch)

    def _abandon(self) -> None:
        self.model.zero_grad()

    def _finish(self) -> None:
        if self._stage.recipe.precision.weights == "ternary":
            self.write_model(self.directory / "model")

    def _terms(
        self,
        tokens: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        objective = self._stage.recipe.objective
        return self._passes.terms(self.model, objective, tokens, targets, segments, rows)

    def _num_windows(self) -> int:
        if self.step < self.recipe.steps:
            return self.recipe.run.evaluation_windows
        # A short run on much data would be evaluated for longer than it was trained.
        return self._trained_windows()

    def _trained_windows(self) -> int:
        trained = num_tokens(self._stages, self.step) // self._stage.recipe.data.length
        return max(self.recipe.run.evaluation_windows, trained)

    def _advance(self) -> dict[str, object]:
        begin = time.perf_counter()
        done: dict[str, object] = {}
        if self._stage != stage_at(self._stages, self.step):
            self._passes.leave(self._stage, self.model)
            self._stage = stage_at(self._stages, self.step)
            done = self._begin_stage()
        stage, number = self._stage, self.step + self.setbacks.skipped
        data = stage.recipe.data
        waiting = time.perf_counter()
        batch = self._batches.batch(
            number - stage.data_first, data.batch_size, stage.layout, order=stage.data_order
        )
        waited = time.perf_counter() - waiting
        found = self._gradients(batch)
        norms = gradient_norms(self.updater.gradients(), self._specs)
        measured = {**found, **norms}
        # The one time that a step waits for the device.
        numbers = torch.stack([value.detach().float() for value in measured.values()]).tolist()
        values = dict(zip(measured, numbers, strict=True))
        try:
            self._require_finite({n: values[n] for n in ("loss", "objective", "gradient_norm")})
        except NotFiniteError as error:
            self.model.zero_grad()
            met = self.setbacks
            if met.in_a_row == MOST_SKIPPED:
                raise
            self.setbacks = replace(met, skipped=met.skipped + 1, in_a_row=met.in_a_row + 1)
            return {**done, "skipped_batch": number, "because": error.what}
        self.setbacks = replace(self.setbacks, in_a_row=0)
        factor = learning_rate_factor(stage, self.step)
        # What an update changes is looked at where an evaluation follows.
        watched = self._evaluates(self.step + 1)
        before = sampled_codes(self.model, self._specs) if watched else ()
        self.updater.update(norm=norms["gradient_norm"], factor=factor)
        after = sampled_codes(self.model, self._specs) if watched else ()
        self.step += 1
        speed = batch.inputs.size / (time.perf_counter() - begin)
        if self._speeds is not None:
            flops = speed * flops_per_token(self.recipe.model, data.length)
            done["utilisation"] = flops / self._speeds.peak(stage.recipe.precision.products)
        return {
            "tokens": num_tokens(self._stages, self.step),
            **values,
            **code_changes(before, after),
            "learning_rate_factor": factor,
            "tokens_per_second": speed,
            **done,
            "waiting_seconds": waited,
        }

    def _decide(self) -> dict[str, object] | None:
        """The steps of a run that has a time, if they are decided now."""
        if self.recipe.steps != ENDLESS:
            return None
        there = self.held_out.num_in_order(self._stage.layout)
        last = min(self._trained_windows(), there) * self._stage.recipe.data.length
        decided = self._budget.ending(self.recipe, self.step, last_tokens=last)
        if decided is None:
            return None
        self.recipe, self._stages = decided, stages(decided)
        self._stage = stage_at(self._stages, self.step)
        return {"decided_steps": decided.steps, "decay_steps": decided.schedule.decay_steps}

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Leave the gradients of a batch, and return its terms: both are means over its targets."""
        size, device = self._stage.recipe.data.microbatch, self.model.ops.device
        later = len(self._stage.recipe.objective.later_tokens)
        farthest = 1 + max(later, self.recipe.model.num_ahead)
        means: dict[str, Tensor] = {}
        with self.model.rounded():
            for share, inputs in microbatches(batch, size, device, farthest):
                with self._interruption.abandonable(), compiling():
                    found = self._terms(*inputs)
                    (found["objective"] * share).backward()
                for name, value in found.items():
                    mean = value.detach() * share
                    means[name] = means[name] + mean if name in means else mean
        return means

    def _go_back(self, error: NotFiniteError, log: RunLog) -> dict[str, object]:
        """Go on from an earlier snapshot, with other batches than those that led here, and return what the log says."""
        met = self.setbacks
        steps = [
            step
            for step in planned_steps(self.directory, self.recipe.steps, self.recipe.run, log)
            # Where no batch was bad, an evaluation was, and would be again.
            if step < self.step or met.in_a_row
        ]
        returns = met.returns + 1 if steps[-1:] == [met.returned_to] else 1
        if not steps or returns > MOST_RETURNS:
            raise error
        self.model.zero_grad()
        last = self.step + met.skipped
        self._enter(self._restore(snapshot_directory(self.directory, steps[-1])))
        first = self.step + self.setbacks.skipped
        self.setbacks = Setbacks(
            skipped=last + 1 - self.step, returns=returns, returned_to=self.step
        )
        drop_later_snapshots(self.directory, self.step)
        self._saved = self.step
        # The pace is measured anew.
        self._budget = Budget(self._budget.spent)
        return {
            "went_back": f"{error.what}: batches {first} to {last} are left out",
            "last_batch": last,
        }

    def _restore(self, start: Path) -> Mapping[str, State]:
        """Take the step and the parameters of a snapshot, and return its optimizer's state."""
        snapshot = load_snapshot(start, str(self.model.ops.device))
        if snapshot.recipe.model != self.recipe.model:
            raise TrainingError(
                f"{start} is a snapshot of another model than the recipe's: leave out CONFIG, --preset and settings "
                "of the model, and that of the snapshot is taken"
            )
        for name, parameter in self.model.named_parameters():
            found = snapshot.parameters.get(name)
            if found is None or found.shape != parameter.shape:
                raise TrainingError(
                    f"{start} has no {name} of shape {tuple(parameter.shape)}: it is damaged"
                )
            parameter.data.copy_(found)
        if snapshot.data != self.shards.fingerprint:
            raise TrainingError(
                f"{start} has seen other data than {self.shards}: pass the data of that run"
            )
        self.step, self.setbacks = snapshot.step, snapshot.setbacks
        settings = [stage.recipe.optimizer for stage in stages(snapshot.recipe)]
        require_states(snapshot.optimizer, self._specs, settings, source=str(start))
        # A phase ends with the evaluation of its last step.
        self._stage = stage_at(self._stages, max(0, self.step - 1))
        if snapshot.phase is not None and snapshot.recipe.phases == self.recipe.phases:
            # The first batch of the next one may have been left out, or interrupted.
            self._stage = self._stages[snapshot.phase]
        return snapshot.optimizer

    def _begin_stage(self) -> dict[str, object]:
        """Enter a phase at its beginning, and return what the log says of that."""
        states, fire = self.updater.states(), self._stage.fire
        optimizer = self._stage.recipe.optimizer
        renewed = [] if fire is None else fired(self.model, self._specs, optimizer, fire)
        # What was kept of them leads elsewhere.
        self._enter({name: state for name, state in states.items() if name not in renewed})
        return {"fire": f"matrices made nearly orthogonal: {len(renewed)}"} if renewed else {}

    def _enter(self, states: Mapping[str, State]) -> None:
        """Take over the settings of the phase, with what goes on of the optimizer's state."""
        recipe = self._stage.recipe
        self.model.precision = recipe.precision.weights
        self.model.ops = TorchOps(
            str(self.model.ops.device), getattr(torch, recipe.precision.products)
        )
        self.updater = Updater(self.model, self._specs, recipe.optimizer, states)
