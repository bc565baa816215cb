"""Every term of the objective, against its formula and finite differences, and in a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.loss import Teaching
from nanochat.backends.torch.ops import TorchOps
from nanochat.errors import ConfigError
from nanochat.model import TrainingOutputs
from nanochat.training.loop import Trainer
from nanochat.training.loss import terms
from nanochat.training.objectives.filtering import kept_rows
from nanochat.training.objectives.readout import counted_rows
from nanochat.training.objectives.settings import Objective
from nanochat.training.run_log import LogEntry
from tests.training.runs import entries, quiet, recipe

OPS = TorchOps("cpu", torch.float64)
# B sequences, T tokens, C width, V vocabulary.
B, T, C, V = 2, 5, 4, 7
TARGETS = torch.tensor([[1, 6, 0, 3, 3], [2, -1, 5, 4, -1]])
# Nothing else, whatever the model has.
PLAIN: dict[str, Any] = {"exit_entropy": 0.0, "ahead": 0.0, "balance": 0.0, "router_z": 0.0}


def given(
    steps: int = 1, ahead: int = 0, dtype: torch.dtype = torch.float64
) -> TrainingOutputs[Tensor, Leaf]:
    """Random outputs of a model, of which gradients can be taken."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    stay = torch.rand(steps - 1, B, T, 1, generator=generator, dtype=dtype)
    left = stay.cumprod(dim=0)
    return TrainingOutputs(
        steps=tuple(draw(B, T, C) for _ in range(steps)),
        survival=tuple(p.clone().requires_grad_() for p in left),
        ahead=tuple(draw(B, T, C) for _ in range(ahead)),
        routing=(),
        table=draw(V, C),
    )


def minimised(
    outputs: TrainingOutputs[Tensor, Leaf], objective: Objective, **others: Any
) -> dict[str, Tensor]:
    return terms(outputs, TARGETS, OPS, objective, top_k=1, **others)


def number(x: Tensor) -> NDArray[np.float64]:
    return x.detach().numpy().astype(np.float64)


def log_softmax(outputs: TrainingOutputs[Tensor, Leaf], step: int) -> NDArray[np.float64]:
    """The logarithms of all probabilities (B, T, V)."""
    assert isinstance(outputs.table, Tensor)
    logits = number(outputs.steps[step]) @ number(outputs.table).T
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


def losses(outputs: TrainingOutputs[Tensor, Leaf], step: int = -1) -> NDArray[np.float64]:
    """The nats of each target (B, T), 0 where there is none."""
    ids = TARGETS.numpy()
    chosen = np.take_along_axis(log_softmax(outputs, step), ids.clip(0)[..., None], axis=-1)
    return np.where(ids >= 0, -chosen[..., 0], 0)


def exits(outputs: TrainingOutputs[Tensor, Leaf]) -> NDArray[np.float64]:
    """The probability of leaving after each step (steps, B, T)."""
    still = [np.ones((B, T)), *(number(p)[..., 0] for p in outputs.survival), np.zeros((B, T))]
    return np.asarray(-np.diff(still, axis=0))


def mean(values: NDArray[np.float64]) -> float:
    """Over tokens that have a target."""
    return float(values[TARGETS.numpy() >= 0].mean())


def label_smoothing(outputs: TrainingOutputs[Tensor, Leaf], step: int) -> NDArray[np.float64]:
    return np.asarray(-log_softmax(outputs, step).mean(axis=-1))


def z_loss(outputs: TrainingOutputs[Tensor, Leaf], step: int) -> NDArray[np.float64]:
    assert isinstance(outputs.table, Tensor)
    logits = number(outputs.steps[step]) @ number(outputs.table).T
    return np.asarray(np.log(np.exp(logits).sum(axis=-1)) ** 2)


def entropy(outputs: TrainingOutputs[Tensor, Leaf], step: int) -> NDArray[np.float64]:
    logarithms = log_softmax(outputs, step)
    return np.asarray(-(np.exp(logarithms) * logarithms).sum(axis=-1))


OF_TOKENS: dict[str, tuple[Callable[..., NDArray[np.float64]], Callable[..., float]]] = {
    "label_smoothing": (label_smoothing, lambda ce, term: 0.9 * ce + 0.1 * term),
    "z_loss": (z_loss, lambda ce, term: ce + 0.1 * term),
    "entropy": (entropy, lambda ce, term: ce - 0.1 * term),
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_term_of_tokens_is_its_formula(name: str, steps: int) -> None:
    outputs = given(steps)
    formula, total = OF_TOKENS[name]

    found = minimised(outputs, Objective(**{**PLAIN, name: 0.1}))

    shares = exits(outputs)
    expected = sum(mean(shares[i] * formula(outputs, i)) for i in range(steps))
    plain = sum(mean(shares[i] * losses(outputs, i)) for i in range(steps))
    assert found[name].item() == pytest.approx(expected, rel=1e-12)
    assert found["objective"].item() == pytest.approx(total(plain, expected), rel=1e-12)
    assert found["loss"].item() == pytest.approx(mean(losses(outputs)), rel=1e-12)


def agrees_with_finite_differences(
    outputs: TrainingOutputs[Tensor, Leaf], objective: Objective, **others: Any
) -> bool:
    """Whether the objective's gradients are its slopes, along all inputs."""
    parts = [*outputs.steps, *outputs.survival, *outputs.ahead, outputs.table]
    counts = np.cumsum([len(outputs.steps), len(outputs.survival), len(outputs.ahead)])

    def total(*values: Tensor) -> Tensor:
        a, b, c = counts
        moved = TrainingOutputs[Tensor, Leaf](
            steps=values[:a],
            survival=values[a:b],
            ahead=values[b:c],
            routing=(),
            table=values[-1],
        )
        return minimised(moved, objective, **others)["objective"]

    check: Callable[..., bool] = torch.autograd.gradcheck
    return check(total, parts)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"label_smoothing": 0.1}, 1),
        ({"z_loss": 0.1}, 1),
        ({"entropy": 0.1}, 1),
        ({"label_smoothing": 0.1, "z_loss": 0.1, "entropy": 0.1}, 3),
        ({"keep_tokens": 0.4}, 2),
        ({"later_tokens": (0.5, 0.25)}, 2),
        ({"later_tokens": (0.5, 0.25), "keep_tokens": 0.6, "z_loss": 0.1}, 2),
    ],
    ids=str,
)
def test_gradients_agree_with_finite_differences(settings: dict[str, Any], steps: int) -> None:
    assert agrees_with_finite_differences(given(steps), Objective(**settings))


def taught(temperature: float) -> Teaching:
    """What a teacher of another width says."""
    generator = torch.Generator().manual_seed(1)
    x, table = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (B * T, V))
    return Teaching(x=x, head=table, temperature=temperature)


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature: float, share: float) -> None:
    outputs, teacher = given(), taught(temperature)
    assert isinstance(outputs.table, Tensor)
    settings = Objective(**PLAIN, distillation=0.5, temperature=temperature, keep_tokens=share)

    found = minimised(outputs, settings, teaching=teacher)

    def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
        powers = np.exp(logits / temperature)
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

    theirs = softmax(number(teacher.x) @ number(teacher.head).T).reshape(B, T, V)
    ours = softmax(number(outputs.steps[0]) @ number(outputs.table).T)
    divergence = (theirs * np.log(theirs / ours)).sum(axis=-1)
    every = losses(outputs)
    chosen = kept(every, round(share * T))
    expected = divergence[chosen].mean()
    assert found["distillation"].item() == pytest.approx(expected, rel=1e-6)
    total = every[chosen].mean() + 0.5 * temperature**2 * expected
    assert found["objective"].item() == pytest.approx(total, rel=1e-6)


def test_gradients_of_distillation_agree_with_finite_differences() -> None:
    settings = Objective(distillation=0.5, temperature=2.0)

    assert agrees_with_finite_differences(given(2), settings, teaching=taught(2.0))


@pytest.mark.parametrize("factors", [(0.5,), (0.5, 0.25), (0.0, 0.25)], ids=str)
def test_later_tokens_are_predicted_by_the_same_logits(factors: tuple[float, ...]) -> None:
    outputs = given(2)
    shares, ids = exits(outputs), TARGETS.numpy()

    found = minimised(outputs, Objective(**PLAIN, later_tokens=factors))

    expected = 0.0
    for distance, factor in enumerate(factors, 2):
        later = ids[:, distance - 1 :]
        for step in range(2):
            seen = log_softmax(outputs, step)[:, : T + 1 - distance]
            lost = -np.take_along_axis(seen, later.clip(0)[..., None], axis=-1)[..., 0]
            lost = lost * shares[step][:, : T + 1 - distance]
            expected += factor * float(lost[later >= 0].sum() / (ids >= 0).sum())
    plain = sum(mean(shares[i] * losses(outputs, i)) for i in range(2))
    assert found["later_tokens"].item() == pytest.approx(expected, rel=1e-6)
    assert found["objective"].item() == pytest.approx(plain + expected, rel=1e-6)


def test_tokens_of_another_document_are_no_later_targets() -> None:
    outputs = given(ahead=1)
    settings = Objective(later_tokens=(0.5,))
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 2, 2]])
    # The last token of a document has no next one.
    ends = TARGETS.clone()
    ends[0, 1] = ends[1, 2] = -1

    found = terms(outputs, ends, OPS, settings, top_k=1, segments=segments)

    lost = -log_softmax(outputs, 0)
    # Of all rows, only these have the token after the next one in their document, and six the next one.
    assert found["later_tokens"].item() == pytest.approx(0.5 * lost[0, 2:4, 3].sum() / 6, rel=1e-6)
    heads = -log_softmax(replace(outputs, steps=outputs.ahead), 0)
    assert found["ahead"].item() == pytest.approx(heads[0, 2:4, 3].sum() / 6, rel=1e-6)


def test_extra_heads_count_as_much_as_each_other() -> None:
    outputs, ids = given(ahead=2), TARGETS.numpy()

    found = minimised(outputs, Objective(ahead=0.5))

    parts = []
    for distance in (2, 3):
        heads = log_softmax(replace(outputs, steps=outputs.ahead), distance - 2)
        later = ids[:, distance - 1 :]
        lost = -np.take_along_axis(heads[:, : later.shape[1]], later.clip(0)[..., None], axis=-1)
        parts.append(lost[later >= 0].sum() / (ids >= 0).sum())
    assert found["ahead"].item() == pytest.approx(np.mean(parts), rel=1e-6)
    total = mean(losses(outputs)) + 0.5 * np.mean(parts)
    assert found["objective"].item() == pytest.approx(total, rel=1e-6)


def test_factors_of_zero_for_later_tokens_are_exactly_the_plain_loss() -> None:
    outputs = given(dtype=torch.float32)

    found = minimised(outputs, Objective(later_tokens=(0.0, 0.0)))

    assert list(found) == ["objective", "loss"]
    assert torch.equal(found["objective"], minimised(outputs, Objective())["loss"])


def test_more_later_tokens_than_a_sequence_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"length=2 leaves no target for 2 factors .*: lengthen"):
        recipe(data={"length": 2}, objective={"later_tokens": [1, 1]})


def test_the_gate_learns_whether_the_next_step_gains() -> None:
    outputs = given(3)

    found = minimised(outputs, Objective(exits="improvement", exit_slope=3.0, exit_margin=0.1))

    survival = [number(p)[..., 0] for p in outputs.survival]
    every = [losses(outputs, step) for step in range(3)]
    costs = []
    for go_on, now, later in zip(
        (survival[0], survival[1] / survival[0]), every, every[1:], strict=False
    ):
        wanted = 1 / (1 + np.exp(-3.0 * (np.maximum(now - later, 0) - 0.1)))
        costs.append(-wanted * np.log(go_on) - (1 - wanted) * np.log(1 - go_on))
    expected = mean((costs[0] + costs[1]) / 2)
    assert found["objective"].item() == pytest.approx(expected, rel=1e-6)
    assert found["objective"] is found["exit_improvement"]
    assert found["loss"].item() == pytest.approx(mean(every[2]), rel=1e-6)


def test_the_gradient_of_the_gate_agrees_with_finite_differences_and_reaches_nothing_else() -> None:
    outputs = given(3)
    settings = Objective(exits="improvement")
    check: Callable[..., bool] = torch.autograd.gradcheck

    def total(*survival: Tensor) -> Tensor:
        return minimised(replace(outputs, survival=survival), settings)["objective"]

    total(*outputs.survival).backward()

    assert check(total, outputs.survival)
    assert all(p.grad is not None for p in outputs.survival)
    assert isinstance(outputs.table, Tensor)
    assert [x.grad for x in (*outputs.steps, outputs.table)] == [None] * 4


@pytest.mark.parametrize("stay", [0.0, 1.0])
def test_a_gate_that_is_quite_sure_costs_a_finite_number(stay: float) -> None:
    sure = torch.full((B, T, 1), stay, dtype=torch.float64, requires_grad=True)
    outputs = replace(given(3), survival=(sure, sure))

    found = minimised(outputs, Objective(exits="improvement"))["objective"]
    found.backward()

    assert sure.grad is not None
    assert torch.isfinite(found)
    assert sure.grad.isfinite().all()


def test_a_phase_trains_the_gate_alone(data: Path, tmp_path: Path) -> None:
    settings = recipe(
        model={"loop_count": 3},
        steps=4,
        schedule={"warmup_steps": 0, "decay_steps": 0},
        run={"evaluation_windows": 1},
        phases=[
            {"steps": 2},
            {
                "steps": 2,
                "objective": {"exits": "improvement"},
                "optimizer": {"only": ["exits"]},
            },
        ],
    )
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    parameters: list[dict[str, Tensor]] = []

    def show(_: LogEntry) -> None:
        named = trainer.model.named_parameters()
        parameters.append({name: p.detach().clone() for name, p in named})

    assert trainer.run(show)

    after_first, last = parameters[2], parameters[-1]
    changed = {name for name in last if not torch.equal(last[name], after_first[name])}
    assert changed == {name for name in last if name.startswith("exit.")}
    lines = [line for line in entries(tmp_path) if "loss" in line]
    assert [line.get("exit_improvement") == line["objective"] for line in lines] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("model", "only", "message"),
    [
        ({}, ["exits"], r"and the model has none: set model\.loop_count=2"),
        ({"loop_count": 2}, [], r'nothing but the gate: set optimizer\.only=\["exits"\]'),
    ],
    ids=str,
)
def test_a_gate_that_cannot_be_trained_alone_is_refused(
    model: dict[str, object], only: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(model=model, optimizer={"only": only}, objective={"exits": "improvement"})


@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_factor_of_zero_is_exactly_the_plain_loss(name: str) -> None:
    outputs = given(dtype=torch.float32)
    settings: dict[str, Any] = {name: 0.0}

    found = minimised(outputs, Objective(**settings))

    alone = OPS.cross_entropy(outputs.steps[0], outputs.table, TARGETS, (TARGETS >= 0) / 8)
    assert list(found) == ["objective", "loss"]
    assert torch.equal(found["objective"], alone.sum())


def kept(excess: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Which tokens (B, T) are the `count` highest of their sequence, among those that have a target."""
    ranked = np.argsort(np.where(TARGETS.numpy() >= 0, -excess, np.inf), axis=1)[:, :count]
    found = np.zeros((B, T), bool)
    np.put_along_axis(found, ranked, True, axis=1)
    return found & (TARGETS.numpy() >= 0)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
@pytest.mark.parametrize("has_reference", [False, True])
def test_the_tokens_of_the_highest_excess_loss_are_kept(share: float, has_reference: bool) -> None:
    outputs = given(2)
    every, shares = losses(outputs), exits(outputs)
    generator = np.random.default_rng(0)
    theirs = generator.uniform(0, 4, (B, T)) if has_reference else np.zeros((B, T))

    found = minimised(
        outputs,
        Objective(**PLAIN, z_loss=0.1, keep_tokens=share),
        reference=torch.from_numpy(theirs) if has_reference else None,
    )

    chosen = kept(every - theirs, round(share * T))
    steps = [losses(outputs, i) + 0.1 * z_loss(outputs, i) for i in range(2)]
    expected = sum(shares[i] * steps[i] for i in range(2))[chosen].mean()
    # Equal factors are float32.
    assert found["objective"].item() == pytest.approx(expected, rel=1e-6)
    assert found["kept_loss"].item() == pytest.approx(every[chosen].mean(), rel=1e-6)
    assert found["loss"].item() == pytest.approx(mean(every), rel=1e-12)
    assert not found["loss"].requires_grad


def test_the_number_of_tokens_that_are_read_is_fixed() -> None:
    excess = torch.full((3, 8), -torch.inf)
    excess[1, 2:7] = torch.arange(5.0)

    assert kept_rows(excess, 4).tolist()[4:8] == [8 + 3, 8 + 4, 8 + 5, 8 + 6]
    assert len(kept_rows(excess, 4)) == 12


def test_kept_tokens_make_up_for_the_weights_of_others() -> None:
    outputs = given()
    weights = torch.where(TARGETS >= 0, 2.0, 0.0).double()
    weights[0, 0] = 0

    found = minimised(outputs, Objective(keep_tokens=0.4), weights=weights)

    every = losses(outputs)
    every[0, 0] = -1
    assert found["objective"].item() == pytest.approx(7 * 2 * every[kept(every, 2)].mean())


# What the log calls terms of settings by another name.
LOGGED = {"keep_tokens": "kept_loss"}


@pytest.mark.parametrize(
    ("objective", "model"),
    [
        ({"keep_tokens": 0.5}, {}),
        ({"later_tokens": [0.5, 0.25]}, {}),
        ({"ahead": 0.3}, {"num_ahead": 2, "ahead_kind": "sequential"}),
        ({"label_smoothing": 0.1, "z_loss": 0.01, "entropy": 0.01}, {"loop_count": 2}),
    ],
    ids=str,
)
def test_a_run_logs_every_term_and_ends(
    objective: dict[str, object], model: dict[str, object], data: Path, tmp_path: Path
) -> None:
    settings = recipe(
        model=model,
        steps=2,
        schedule={"warmup_steps": 0, "decay_steps": 0},
        objective=objective,
        run={"evaluation_windows": 1},
    )

    assert Trainer(settings, data, tmp_path, num_threads=1, compile_model=False).run(quiet)

    lines = [line for line in entries(tmp_path) if "loss" in line]
    logged = [LOGGED.get(name, name) for name in objective]
    numbers = [[line[name] for name in ("loss", "objective", *logged)] for line in lines]
    assert len(numbers) == 2
    assert np.isfinite(numbers).all()


def test_tokens_without_a_target_are_not_read_out() -> None:
    outputs = given(2, ahead=1)
    assert isinstance(outputs.table, Tensor)
    everything = Objective(label_smoothing=0.1, z_loss=0.1, entropy=0.1)
    counted = counted_rows(TARGETS.numpy(), 2)
    rows = torch.from_numpy(counted)
    # If it was read, no gradient would be left.
    unread = [row for row in range(B * T) if row not in rows]
    places = torch.tensor(unread)
    broken = tuple(
        x.detach().flatten(0, 1).index_fill(0, places, torch.nan).view(B, T, C)
        for x in outputs.steps
    )

    found = minimised(replace(outputs, steps=broken), everything, rows=rows)
    gradients = torch.autograd.grad(found["objective"], outputs.table)

    expected = minimised(outputs, everything)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected["objective"], outputs.table))
