"""This file holds reinforcement learning: what a step, an evaluation and a snapshot are of a run on problems."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.bundle import Bundle
from nanochat.errors import TrainingError
from nanochat.evaluation.evaluate import evaluate_texts, texts_of
from nanochat.export.directory import save_model
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.judge.judge import Judge
from nanochat.lm import Model
from nanochat.problems.sets import ProblemSet
from nanochat.rl.batches import Learnt, Microbatch, learnt, microbatches
from nanochat.rl.evaluation import HELD_OUT_PASSES, evaluate, held_out, require_variety
from nanochat.rl.flips import codes, flips
from nanochat.rl.policy import Given, terms
from nanochat.rl.recipe import Recipe, recipe_to_dict, stages
from nanochat.rl.rehearsal import Rehearsal, divergence
from nanochat.rl.rollouts import Curriculum, described, draw, trained_on
from nanochat.sandbox.layers import Kind
from nanochat.shapes import shapes
from nanochat.training import recipe as training
from nanochat.training.course import Course
from nanochat.training.fire import fired
from nanochat.training.frozen import FrozenModel
from nanochat.training.layers import compiled_layer, compiling
from nanochat.training.machine import machine, warn_of_changes
from nanochat.training.module import LanguageModel
from nanochat.training.monitoring import gradient_norms
from nanochat.training.objectives.readout import counted_rows
from nanochat.training.phases import rate_factor, stage_at
from nanochat.training.run_log import HELD_OUT, RunLog
from nanochat.training.snapshot import (
    Snapshot,
    largest_numbers,
    load_snapshot,
    save_snapshot,
    snapshot_directory,
)
from nanochat.training.updater import State, Updater, require_states
from nanochat.weights import Stored, Weights, named_leaves

__all__ = ["Reinforcement"]


class Reinforcement(Course):
    """A run: a model, the problems that it learns from, and a directory that they are saved in.

    Parameters
    ----------
    weights : tree of latent and dense leaves
        What it begins with.
    bundle : Bundle
        The model whose weights they are, for its tokenizer and what is said of it.
    problems : ProblemSet
        That of ``problems.source``.
    directory : Path
        Of the run; in the end it holds ``model/``, too.
    resume : bool
        Whether it goes on from the last snapshot there.
    sandbox : Kind
        What programs run in.
    backend : str
        What draws samples.
    device : str
        Where it learns: "auto", "cpu", "cuda".
    num_threads : int, optional
        CPU threads of this process, from now on.
    compile_model : bool
        Whether to learn through ``torch.compile``.
    """

    _evaluates_first = True

    def __init__(
        self,
        recipe: Recipe,
        weights: Weights[Stored],
        bundle: Bundle,
        problems: ProblemSet,
        directory: Path,
        *,
        resume: bool = False,
        sandbox: Kind = "auto",
        backend: str = "auto",
        device: str = "auto",
        num_threads: int | None = None,
        compile_model: bool = False,
    ) -> None:
        super().__init__(directory)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.recipe = recipe
        self._stages = stages(recipe)
        self._stage = self._stages[0]
        # The first one begins with the first step.
        self._begun_stage = -1
        self._problems = problems
        self._curricula = [
            Curriculum(trained_on(problems, stage.recipe.problems).problems, recipe.seed)
            for stage in self._stages
        ]
        self._held_out = [held_out(stage.recipe) for stage in self._stages]
        self._texts = texts_of(recipe.evaluation.texts)
        self._sandbox = sandbox
        # Before torch has threads, and before anything is written.
        self._judge: Judge | None = Judge(sandbox)
        ops = TorchOps(device, getattr(torch, recipe.precision.products))
        self._machine = machine(ops.torch_device, compiled=compile_model)
        self.model = LanguageModel(bundle.config, weights, ops)
        self._compiles = compile_model
        if compile_model:
            self.model.layer = compiled_layer()
        self._specs = dict(named_leaves(shapes(bundle.config)))
        self._bundle = bundle
        self._start = FrozenModel(bundle.config, ops.prepare(freeze(weights)), ops)
        self._codes_at_start = codes(self.model, self._specs)
        self._teachers: dict[str, FrozenModel] = {}
        longest = bundle.config.context_length
        for name in dict.fromkeys(stage.recipe.reward.teacher for stage in self._stages):
            if name:
                self._teachers[name] = FrozenModel.load(
                    name, bundle.tokenizer, setting="reward.teacher", length=longest, device=device
                )
        self._num_drawn = 0
        states: Mapping[str, State] = {}
        if resume:
            states = self._restore()
            self._resume()
        self._enter(states)

        def drawing(of: Weights[Stored]) -> Model:
            return Model(
                bundle.config,
                of,
                bundle.tokenizer,
                backend=backend,
                name=str(directory),
                num_threads=num_threads,
            )

        self._rehearsal: Rehearsal | None = None
        if any(stage.recipe.policy.rehearsal for stage in self._stages):
            with drawing(weights) as model:
                self._rehearsal = Rehearsal(
                    model.engine, bundle.tokenizer, self._start, recipe.seed
                )
        self.drawing = drawing(self.model.stored())

    def close(self) -> None:
        """End what judges."""
        if self._judge is not None:
            self._judge.close()
        self._judge = None

    @property
    def _last_step(self) -> int:
        return self.recipe.steps

    @property
    def _settings(self) -> training.Rhythm:
        return self.recipe.run

    def _log(self) -> RunLog:
        kept = self.step if self._begun else -1
        return RunLog(self.directory / "log.jsonl", step=kept, batch=self.step, cost=_cost)

    def _head(self) -> dict[str, object]:
        assert self._judge is not None
        recipe = {**recipe_to_dict(self.recipe), "from": self.recipe.model}
        recipe["model"] = training.recipe_to_dict(self._as_training())["model"]
        return {"recipe": recipe, "machine": {**self._machine, **self._judge.describe()}}

    @contextmanager
    def _judging(self) -> Iterator[None]:
        if self._judge is None:
            self._judge = Judge(self._sandbox)
        try:
            yield
        finally:
            self.close()

    def _opened(self) -> AbstractContextManager[object]:
        return self._judging()

    def _abandon(self) -> None:
        self.model.zero_grad()

    def _finish(self) -> None:
        bundle = replace(
            self._bundle,
            name=self.directory.resolve().name,
            weights=freeze(self.model.stored()),
            golden=None,
            origin="",
            card=b"",
            graph=None,
        )
        save_model(self.directory / "model", bundle)

    def _evaluate(self, watch: Callable[[int, int], None]) -> dict[str, object]:
        assert self._judge is not None
        recipe = self._stage.recipe
        with self._interruption.abandonable():
            found = evaluate(
                self.drawing.engine,
                self.drawing.tokenizer,
                self._held_out[self._stage.number],
                self._judge,
                recipe,
                watch=watch,
                check=self._interruption.check,
            )
            if self._texts:
                found[HELD_OUT] = self._bits_per_byte()
        now = codes(self.model, self._specs)
        found["flips_since_start"] = flips(self._codes_at_start, now, self._specs)
        if self.step:
            require_variety(found, recipe.reward, self.step)
        return found

    def _advance(self) -> dict[str, object]:
        clock = time.perf_counter
        begin = clock()
        done: dict[str, object] = {}
        stage = stage_at(self._stages, self.step)
        if stage.number != self._begun_stage:
            self._stage, self._begun_stage = stage, stage.number
            done = self._begin_stage()
        recipe = self._stage.recipe
        judge = None if recipe.reward.kind == "teacher" else self._judge
        with self._interruption.abandonable():
            rollouts = draw(
                self.drawing.engine,
                self.drawing.tokenizer,
                self._curricula[self._stage.number].of_step(self.step),
                judge,
                recipe,
                self.step,
                clock=clock,
            )
        samples = learnt(rollouts, recipe, self.step)
        middle = clock()
        before = codes(self.model, self._specs)
        seen = self._learn(samples)
        after = codes(self.model, self._specs)
        self._require_flips(after)
        self._hand_over()
        self.step += 1
        told = described(rollouts)
        sampled = int(str(told["sampled_tokens"]))
        self._num_drawn += sampled
        seconds = {**rollouts.seconds, "learning": clock() - middle, "all": clock() - begin}
        return {
            "tokens": self._num_drawn,
            **told,
            "learnt_samples": len(samples),
            **seen,
            "flips": flips(before, after, self._specs),
            "tokens_per_second": sampled / seconds["all"],
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            **done,
        }

    def _learn(self, samples: Sequence[Learnt]) -> dict[str, object]:
        """Update the model by what was drawn, and return what there is to see of that."""
        recipe = self._stage.recipe
        factor = rate_factor(recipe.schedule, self.step, self.recipe.steps)
        batches = [*microbatches(samples, recipe.policy.microbatch, full=self._compiles)]
        if not batches:
            return {"learning_rate_factor": factor}
        # Whether anything is to be known of the model that the run began with.
        watched = recipe.policy.kl > 0 or self._evaluates(self.step + 1)
        given = [self._given(batch, watched=watched) for batch in batches]
        num_tokens = sum(int((batch.targets >= 0).sum()) for batch in batches)
        sums: dict[str, float] = {}
        for number in range(recipe.policy.updates):
            seen: list[dict[str, Tensor]] = []
            with self.model.rounded():
                for place, (targets, rows, tokens, known) in enumerate(given):
                    with self._interruption.abandonable(), compiling():
                        loss = partial(
                            terms,
                            given=known,
                            ops=self.model.ops,
                            policy=recipe.policy,
                            temperature=recipe.rollout.temperature,
                            rows=rows,
                        )
                        found = self.model(tokens, loss, targets, has_heads=False)
                        found["objective"].backward()
                    if number == 0:
                        known = replace(known, before=found["logprobs"])
                        given[place] = (targets, rows, tokens, known)
                    seen.append({k: v.detach() for k, v in found.items() if k != "logprobs"})
                forgotten = self._rehearse()
            norms = gradient_norms(self.updater.gradients(), self._specs)
            sums = _summed(seen)
            values = {name: float(norm) for name, norm in norms.items()}
            self._require_finite(
                {"objective": sums["objective"], "gradient_norm": values["gradient_norm"]}
            )
            self.updater.update(norm=norms["gradient_norm"], factor=factor)
            sums |= {**values, **forgotten}
        for name in ("entropy", "kl", "teacher_kl", "clipped", "mismatch"):
            if name in sums:
                sums[name] /= num_tokens
        found_of: dict[str, object] = {**sums, "learning_rate_factor": factor}
        if recipe.rollout.temperature != 1:
            # Where tokens are drawn, their log-probabilities are those at temperature 1.
            del found_of["mismatch"], found_of["mismatch_max"]
        return found_of

    def _rehearse(self) -> dict[str, float]:
        """Add the gradient of what keeps texts from being forgotten, and return how far they are."""
        policy = self._stage.recipe.policy
        if self._rehearsal is None or not policy.rehearsal:
            return {}
        tokens, targets = self._rehearsal.of_step(self.step, policy.rehearsed)
        with self._interruption.abandonable(), compiling():
            loss = partial(divergence, start=self._start, ops=self.model.ops)
            found = self.model(tokens, loss, targets, tokens, has_heads=False)
            (policy.rehearsal * found).backward()
        return {"rehearsal_kl": float(found.detach())}

    def _given(
        self, batch: Microbatch, *, watched: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Given]:
        """Targets, rows for the head, tokens, and what is known of the targets."""
        recipe, device = self._stage.recipe, self.model.ops.device

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values).to(device)

        tokens, targets = tensor(batch.tokens), tensor(batch.targets)
        rows = counted_rows(batch.targets)

        def logprobs(of: FrozenModel) -> Tensor:
            with self._interruption.abandonable():
                return -of.losses(tokens, targets, temperature=recipe.rollout.temperature)

        teacher = self._teachers.get(recipe.reward.teacher)
        known = Given(
            advantages=tensor(batch.advantages),
            weights=tensor(batch.weights),
            drawn=tensor(batch.drawn),
            reference=logprobs(self._start) if watched else None,
            teacher=None if teacher is None else logprobs(teacher),
        )
        return targets, None if rows is None else tensor(rows), tokens, known

    def _require_flips(self, now: Mapping[str, Tensor]) -> None:
        """Refuse to go on where the weights move, and no code has."""
        if self.step + 1 != self.recipe.patience:
            return
        if any(not torch.equal(now[name], old) for name, old in self._codes_at_start.items()):
            return
        matrices = self._stage.recipe.optimizer.matrices
        raise TrainingError(
            f"no code of the model has changed in {self.recipe.patience} steps, so it writes what it wrote: a ternary "
            f"code moves by half a scale at the least; set optimizer.matrices.rate={10 * matrices.rate:g}, or a longer "
            "patience"
        )

    def _hand_over(self) -> None:
        """Draw with the weights as they are now."""
        assert isinstance(self.drawing.engine, Engine)
        for name, parameter in self.model.named_parameters():
            self.drawing.engine.update(name, parameter.detach().cpu().numpy())

    def _begin_stage(self) -> dict[str, object]:
        """Enter a phase at its beginning, and return what the log says of that."""
        states, fire = self.updater.states(), self._stage.fire
        optimizer = self._stage.recipe.optimizer
        renewed = [] if fire is None else fired(self.model, self._specs, optimizer, fire)
        self._enter({name: state for name, state in states.items() if name not in renewed})
        if not renewed:
            return {}
        self._hand_over()
        found: dict[str, object] = {"fire": f"matrices made nearly orthogonal: {len(renewed)}"}
        if self._texts:
            # What that costs, which the next evaluation does not tell any more.
            found[f"{HELD_OUT}_after_fire"] = self._bits_per_byte()
        return found

    def _bits_per_byte(self) -> object:
        found = evaluate_texts(self.drawing, self._texts, "overlapping", lambda *_: None)
        return found["bits_per_byte"]

    def _enter(self, states: Mapping[str, State]) -> None:
        self.updater = Updater(self.model, self._specs, self._stage.recipe.optimizer, states)

    def _as_training(self) -> training.Recipe:
        """What training would call the run, which can begin with its snapshots."""
        recipe = self.recipe
        return training.Recipe(
            model=self._bundle.config,
            steps=recipe.steps,
            seed=recipe.seed,
            data=training.DataSettings(length=min(512, self._bundle.config.context_length)),
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            precision=recipe.precision,
        )

    def _write_snapshot(self) -> None:
        snapshot = Snapshot(
            step=self.step,
            phase=self._begun_stage,
            recipe=self._as_training(),
            data=self._problems.identity,
            machine=self._machine,
            beside={"rl": recipe_to_dict(self.recipe), "drawn": self._num_drawn},
            parameters={name: p.detach() for name, p in self.model.named_parameters()},
            optimizer=self.updater.states(),
        )
        self._require_finite(largest_numbers(snapshot))
        save_snapshot(snapshot_directory(self.directory, self.step), snapshot)

    def _restore(self) -> Mapping[str, State]:
        """Take the step and the parameters of the last snapshot, and return its optimizer's state."""
        snapshot = load_snapshot(self.directory, str(self.model.ops.device))
        if snapshot.data != self._problems.identity:
            raise TrainingError(
                f"{self.directory} has learnt from other problems than {self._problems.name} is today: begin another "
                "run, in another --out"
            )
        warn_of_changes(snapshot.machine, self._machine)
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(snapshot.parameters[name])
        settings = [stage.recipe.optimizer for stage in self._stages]
        require_states(snapshot.optimizer, self._specs, settings, source=str(self.directory))
        self.step = snapshot.step
        self._num_drawn = int(str(snapshot.beside["drawn"]))
        assert snapshot.phase is not None
        self._begun_stage = snapshot.phase
        self._stage = self._stages[max(0, snapshot.phase)]
        return snapshot.optimizer


def _cost(values: Mapping[str, object]) -> object:
    """The better of two evaluations is the one in which more passes of what is not learnt from."""
    passes = values.get(HELD_OUT_PASSES)
    return -passes if isinstance(passes, float) else None


def _summed(seen: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Sums over microbatches; of a maximum, the largest."""
    found: dict[str, float] = {}
    for name in seen[0]:
        values = torch.stack([each[name].float() for each in seen])
        found[name] = float(values.max() if name.endswith("_max") else values.sum())
    return found
