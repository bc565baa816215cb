"""A run raises its reward, goes on exactly where it was interrupted, and stops when it learns nothing."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.errors import TrainingError
from nanochat.evaluation.completing import Drawing, Request, complete
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.lm import Model, from_pretrained
from nanochat.rl.advantages import have_signal
from nanochat.rl.evaluation import require_variety
from nanochat.rl.rollouts import Rollouts, draw
from nanochat.training.beginning import begin_with
from nanochat.training.history import read_history
from nanochat.training.report import summaries
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import snapshot_steps
from nanochat.weights import named_leaves
from tests.rl.runs import log_of, quiet, reinforcement


def test_a_run_raises_what_it_earns_and_writes_the_model_that_does(tmp_path: Path) -> None:
    run = reinforcement(
        tmp_path,
        steps=10,
        rollout={"samples": 64},
        policy={"positives": 8, "negatives": 8, "kl": 0.0},
        evaluation={"problems": 4, "samples": 16},
        run={"evaluate_every": 10, "snapshot_every": 10},
    )

    assert run.run(quiet)

    (summary,) = summaries([read_history(tmp_path)])
    assert summary["step"] == summary["steps"] == 10
    lines = log_of(tmp_path)
    rewards = [line["reward"] for line in lines if "reward" in line]
    # Of these, 0.4 % passed before.
    assert np.mean(rewards[:3]) < 0.05 < 0.15 < np.mean(rewards[-3:])
    first, last = (line for line in lines if "passes" in line)
    assert first["passes"]["train"] < 0.1 < 0.2 < last["passes"]["train"]
    model = from_pretrained(tmp_path / "model", backend="numba")
    problems = run._held_out[0]["train"]
    written = complete(
        model.engine,
        model.tokenizer,
        [Request(p.id, p.prompt, range(16)) for p in problems],
        Drawing(num_samples=16, temperature=0.8, top_p=1.0, max_tokens=8),
    )
    closed = [each.finish == "closed" for each in written]
    assert np.mean(closed) == pytest.approx(last["compiles"]["train"], abs=0.3)


def test_an_interrupted_run_has_the_lines_of_another(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rehearsed: dict[str, Any] = {"policy": {"rehearsal": 0.1, "rehearsed": 256}}
    reinforcement(whole, **rehearsed).run(quiet)

    def interrupt(entry: LogEntry) -> None:
        if entry.step == 3 and "reward" in entry.values:
            os.kill(os.getpid(), signal.SIGINT)

    assert not reinforcement(parts, **rehearsed).run(interrupt)
    assert snapshot_steps(parts)[-1] == 3
    assert reinforcement(parts, resume=True).run(quiet)

    assert log_of(parts) == log_of(whole)
    ours, theirs = (from_pretrained(each / "model") for each in (whole, parts))
    for (name, one), (_, other) in zip(
        named_leaves(ours.weights), named_leaves(theirs.weights), strict=True
    ):
        for field, values in vars(one).items():
            assert np.array_equal(getattr(other, field), values), name


def test_what_draws_has_the_weights_of_what_learns(tmp_path: Path) -> None:
    run = reinforcement(tmp_path, steps=2, optimizer={"matrices": {"rate": 0.5}})
    run.run(quiet)

    fresh = Model(run.model.config, run.model.stored(), run.drawing.tokenizer, backend="numba")

    ids = [1, 5, 9, 30, 40]
    assert isinstance(run.drawing.engine, Engine)
    assert np.array_equal(run.drawing.logits(ids), fresh.logits(ids))
    before = from_pretrained("nanochat-tiny", backend="numba")
    assert not np.array_equal(run.drawing.logits(ids), before.logits(ids))


def test_where_tokens_are_drawn_they_are_as_likely_as_where_they_are_learnt_from(
    tmp_path: Path,
) -> None:
    run = reinforcement(tmp_path, steps=1, rollout={"temperature": 1.0})
    run.run(quiet)

    (step,) = (line for line in log_of(tmp_path) if "mismatch" in line)
    # A rounding of activations may fall otherwise.
    assert 0 < step["mismatch"] < 0.05
    assert step["mismatch_max"] < 0.5


def test_a_run_begins_with_the_weights_that_were_published(tmp_path: Path) -> None:
    run = reinforcement(tmp_path)
    published = from_pretrained("nanochat-tiny", backend="numba")

    ids = [1, 5, 9, 30, 40]
    assert np.array_equal(run.drawing.logits(ids), published.logits(ids))
    run.close()


def test_training_may_begin_with_a_run(tmp_path: Path) -> None:
    run = reinforcement(tmp_path, steps=2)
    run.run(quiet)

    beginning = begin_with(tmp_path, run.model.config)

    assert beginning.tokenizer == run.drawing.tokenizer.fingerprint
    ours = dict(named_leaves(freeze(beginning.weights)))
    for name, leaf in named_leaves(from_pretrained(tmp_path / "model").weights):
        for field, values in vars(leaf).items():
            assert np.array_equal(getattr(ours[name], field), values), name


def test_phases_change_what_is_paid_for_and_may_begin_with_fire(tmp_path: Path) -> None:
    phases = [
        {"steps": 1, "reward": {"kind": "compile"}},
        {"steps": 1, "fire": {"iterations": 10}, "reward": {"kind": "pass"}},
    ]
    text = tmp_path / "text.rs"
    text.write_text("fn main() {}\n")
    rhythm = {"evaluate_every": 1, "snapshot_every": 1}
    run = reinforcement(
        tmp_path / "run", steps=2, phases=phases, run=rhythm, evaluation={"texts": [str(text)]}
    )

    assert run.run(quiet)

    lines = log_of(tmp_path / "run")
    (fire,) = (line for line in lines if "fire" in line)
    assert fire["step"] == 2
    assert "nearly orthogonal" in fire["fire"]
    bits = [line["held_out_bits_per_byte"] for line in lines if "passes" in line]
    assert fire["held_out_bits_per_byte_after_fire"] > bits[1]
    # It flips signs and zeros.
    assert lines[-1]["flips_since_start"]["ternary"] > 0.01


def test_the_first_phase_may_begin_with_fire_once(tmp_path: Path) -> None:
    phases = [{"steps": 3, "fire": {"iterations": 10}}]

    def interrupt(entry: LogEntry) -> None:
        if "reward" in entry.values:
            os.kill(os.getpid(), signal.SIGINT)

    assert not reinforcement(tmp_path, steps=3, phases=phases).run(interrupt)
    assert reinforcement(tmp_path, resume=True).run(quiet)

    assert ["fire" in line for line in log_of(tmp_path) if "reward" in line] == [True, False, False]


def test_a_run_whose_codes_stand_still_is_stopped(tmp_path: Path) -> None:
    still = {"rule": "adamw", "rate": 1e-9}
    run = reinforcement(
        tmp_path,
        patience=2,
        optimizer={"matrices": {"rate": 1e-9}, "embedding": still, "head": still},
    )

    with pytest.raises(
        TrainingError, match=r"no code .* in 2 steps.*optimizer.matrices.rate=1e-08"
    ):
        run.run(quiet)


def test_a_policy_that_writes_one_text_is_stopped(tmp_path: Path) -> None:
    run = reinforcement(tmp_path)
    values: dict[str, object] = {"rewarded_texts": [["$0", 30, 3, 40], ["0", 10, 2, 40]]}
    few: dict[str, object] = {"rewarded_texts": [["$0", 12, 3, 20]]}
    alike: dict[str, object] = {"rewarded_texts": [["$0", 30, 2, 40]]}
    with pytest.raises(TrainingError, match=r"'\$0' is 30 of 40 rewarded samples at step 7"):
        require_variety(values, run.recipe.reward, 7)
    require_variety(few, run.recipe.reward, 7)
    require_variety(alike, run.recipe.reward, 7)
    require_variety({"rewarded_texts": []}, run.recipe.reward, 7)
    run.close()


def test_a_teacher_is_followed_without_a_judge(tmp_path: Path) -> None:
    # FIRE changes signs and zeros, and so a little of everything.
    phases = [{"steps": 1}, {"steps": 1, "fire": {"iterations": 10}}]
    reinforcement(tmp_path / "student", steps=2, phases=phases).run(quiet)
    fields: dict[str, Any] = {
        "reward": {"kind": "teacher", "teacher": "nanochat-tiny"},
        "rollout": {"samples": 8},
        "policy": {"kl": 0.0},
        "run": {"evaluate_every": 100},
    }

    run = reinforcement(tmp_path / "run", steps=6, model=str(tmp_path / "student"), **fields)
    assert run.run(quiet)
    own = reinforcement(tmp_path / "own", steps=1, **fields)
    own.run(quiet)

    steps = [line for line in log_of(tmp_path / "run") if "teacher_kl" in line]
    assert all("verdicts" not in line for line in steps)
    divergences = [line["teacher_kl"] for line in steps]
    assert np.mean(divergences[-2:]) < 0.7 * divergences[0]
    # A model that is its own teacher: what is left are sums in another order.
    assert log_of(tmp_path / "own")[1]["teacher_kl"] < 1e-2


def drawn(out: Path, **changes: Any) -> Rollouts:
    run = reinforcement(out, **changes)
    (curriculum,) = run._curricula
    assert run._judge is not None
    found = draw(
        run.drawing.engine,
        run.drawing.tokenizer,
        curriculum.of_step(0),
        run._judge,
        run.recipe,
        0,
        clock=time.perf_counter,
    )
    run.close()
    return found


def test_a_control_earns_the_same_for_no_reason(tmp_path: Path) -> None:
    def rewards(*, shuffled: bool) -> list[list[float]]:
        reward = {"kind": "compile", "shuffled": shuffled}
        found = drawn(tmp_path, rollout={"samples": 64}, reward=reward)
        return [[*group.rewards] for group in found.groups]

    plain, control = rewards(shuffled=False), rewards(shuffled=True)

    assert plain != control
    assert [sorted(each) for each in plain] == [sorted(each) for each in control]


def test_problems_without_a_signal_stay_or_make_room_for_others(tmp_path: Path) -> None:
    def found(groups: str) -> tuple[list[str], list[str]]:
        rollout = {"prompts": 2, "samples": 64, "groups": groups}
        of = drawn(tmp_path, rollout=rollout)
        left_out = [have_signal(np.array([group.rewards])).any() for group in of.left_out]
        assert not any(left_out)
        return [g.problem.id for g in of.groups], [g.problem.id for g in of.left_out]

    kept, none = found("keep")
    dropped, left_out = found("drop")
    resampled, replaced = found("resample")

    assert (len(kept), none) == (2, [])
    assert sorted(dropped + left_out) == sorted(kept)
    assert left_out
    assert resampled[: len(dropped)] == dropped
    assert set(resampled + replaced) > set(kept)


def test_several_updates_of_a_step_are_limited(tmp_path: Path) -> None:
    run = reinforcement(
        tmp_path,
        steps=2,
        reward={"kind": "teacher", "teacher": "nanochat-tiny"},
        policy={"updates": 3, "clip_low": 1e-3, "clip_high": 1e-3},
        schedule={"warmup_steps": 0},
    )

    run.run(quiet)

    steps = [line for line in log_of(tmp_path) if "clipped" in line]
    assert max(line["clipped"] for line in steps) > 0


def test_the_first_line_says_how_it_was_judged(tmp_path: Path) -> None:
    reinforcement(tmp_path, steps=1).run(quiet)

    head = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])

    assert head["recipe"]["from"] == "nanochat-tiny"
    assert head["recipe"]["policy"]["advantage"] == "maxrl"
    assert head["machine"]["rustc"].startswith("rustc 1.")
    assert "seccomp" in head["machine"]["sandbox"]
