"""The cross-entropy alone: on every backend as the reference says, and its gradients in torch."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from nanochat.backends.reference.ops import ReferenceOps, pieces
from nanochat.weights import Dense, Latent, Stored
from tests.backends.leaves import AnyOps, Lockstep, int8_leaf, normal, prepared, ternary_leaf

REFERENCE = ReferenceOps()


def tables(rows: int) -> dict[str, Stored]:
    return {
        "dense": Dense(values=normal(rows, 128, seed=4)),
        "int8": int8_leaf(rows, 128, activation_block=128),
        "latent": Latent(
            values=normal(rows, 128, seed=4), kind="int8", weight_block=128, activation_block=128
        ),
        "ternary": ternary_leaf(rows, 128, block=128, activation_block=128),
    }


@pytest.mark.parametrize("kind", ["dense", "int8", "latent", "ternary"])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 7), (2, 70)], ids=str)
def test_losses_agree(lockstep: Lockstep, kind: str, batch: int, tokens: int) -> None:
    table = prepared(lockstep, tables(67)[kind])
    generator = np.random.default_rng(1)
    targets = lockstep.tokens(generator.integers(-1, 67, (batch, tokens)))
    x = lockstep.array(normal(batch, tokens, 128))
    weights = lockstep.array(normal(batch, tokens, seed=2) * generator.integers(0, 2, (1, tokens)))

    lockstep.cross_entropy(x, table, targets)
    lockstep.cross_entropy(x, table, targets, weights)

    lockstep.check()


def test_losses_in_several_pieces_agree(lockstep: Lockstep) -> None:
    rows, tokens = 40_009, 131
    assert len(pieces(tokens, rows)) == 2
    table = prepared(lockstep, int8_leaf(rows, 4, activation_block=4))
    targets = lockstep.tokens(np.arange(tokens)[None] * 300)

    lockstep.cross_entropy(lockstep.array(normal(1, tokens, 4)), table, targets)

    lockstep.check()


def test_what_is_no_target_costs_nothing(ops: AnyOps) -> None:
    table = prepared(ops, Dense(values=normal(5, 4)))
    x = ops.array(normal(1, 3, 4))
    weights = ops.array(np.array([[1, 0, -2]], np.float32))

    losses = ops.numpy(ops.cross_entropy(x, table, ops.tokens(np.array([[-1, 2, 2]]))))
    weighted = ops.numpy(ops.cross_entropy(x, table, ops.tokens(np.array([[-1, 2, 2]])), weights))

    assert (losses[0] > 0).tolist() == [False, True, True]
    np.testing.assert_allclose(weighted[0], losses[0] * [1, 0, -2], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_large_logits_do_not_overflow(ops: AnyOps, scale: float) -> None:
    table = prepared(ops, Dense(values=np.eye(3, dtype=np.float32)))
    x = ops.array(np.array([[[scale, 0, 0]]], np.float32))

    losses = [
        ops.numpy(ops.cross_entropy(x, table, ops.tokens(np.array([[target]]))))[0, 0]
        for target in (0, 1)
    ]

    assert losses[1] - losses[0] == pytest.approx(scale, rel=1e-3)
    assert losses[0] == pytest.approx(np.log(np.exp(-scale) * 2 + 1), abs=1e-6)


def test_pieces_hold_every_token_once() -> None:
    for tokens, vocabulary in itertools.product((1, 128, 129, 5000), (1, 4096, 1 << 20)):
        parts = [range(tokens)[part] for part in pieces(tokens, vocabulary)]

        assert list(itertools.chain(*parts)) == list(range(tokens))


# Gradients, which torch alone has.


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("rows", [67, 40_009])
def test_gradients_equal_those_of_whole_logits(rows: int, block: int) -> None:
    torch = pytest.importorskip("torch")
    from nanochat.backends.torch.linears import FloatLinear
    from nanochat.backends.torch.ops import TorchOps

    ops = TorchOps("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 70, 128, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(rows, 128, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 70, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, rows, (2, 70), generator=generator)
    upstream = torch.randn(2, 70, generator=generator, dtype=torch.float64)
    table: Any = FloatLinear(values=values, activation_block=block)

    found = ops.cross_entropy(x, table, targets, weights)
    gradients = torch.autograd.grad(found, [x, values, weights], upstream)

    (logits,) = ops.project(x, table)
    whole = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none", ignore_index=-1)
    expected = torch.autograd.grad(whole * weights, [x, values, weights], upstream)
    torch.testing.assert_close(found, whole * weights)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_a_dense_table_agree_with_finite_differences() -> None:
    torch = pytest.importorskip("torch")
    from nanochat.backends.torch.ops import TorchOps

    ops = TorchOps("cpu", torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, dtype=torch.float64)
    targets = torch.tensor([[1, -1, 3], [8, 0, 1]])

    assert torch.autograd.gradcheck(
        lambda x, table: ops.cross_entropy(x, table, targets, weights), [x, table]
    )


def logit_readings(rows: int, targets: int) -> tuple[Any, Any, Any, Any]:
    """Torch, inputs (7, 4), a table of so many rows, and so many targets of each input."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    return torch, x, table, torch.randint(rows, (7, targets), generator=generator)


@pytest.mark.parametrize("targets", [1, 3])
def test_readings_are_those_of_whole_logits(targets: int) -> None:
    torch, x, table, ids = logit_readings(11, targets)
    from nanochat.backends.torch.loss import readings

    found = readings(x, table, ids, torch.float64, means=True, entropies=True)

    logarithms = (x @ table.T).log_softmax(dim=1)
    torch.testing.assert_close(found.losses, -logarithms.gather(1, ids))
    torch.testing.assert_close(found.partitions, (x @ table.T).logsumexp(dim=1))
    torch.testing.assert_close(found.means, (x @ table.T).mean(dim=1))
    torch.testing.assert_close(found.entropies, -(logarithms.exp() * logarithms).sum(dim=1))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_those_of_whole_distributions(temperature: float) -> None:
    torch, x, table, ids = logit_readings(11, 1)
    from nanochat.backends.torch.loss import readings

    taught = teaching(temperature)
    found = readings(x, table, ids, torch.float64, teaching=taught)

    ours = (x @ table.T / temperature).log_softmax(dim=1)
    theirs = (taught.x @ taught.head.T / temperature).softmax(dim=1)
    whole = torch.nn.functional.kl_div(ours, theirs, reduction="none").sum(dim=1)
    torch.testing.assert_close(found.divergences, whole)


def test_a_teacher_of_some_logits_has_no_other_probabilities() -> None:
    torch, x, table, ids = logit_readings(11, 1)
    from nanochat.backends.torch.loss import readings

    taught = stored_teaching(2.5)
    found = readings(x, table, ids, torch.float64, teaching=taught)

    ours = (x @ table.T / 2.5).log_softmax(dim=1).gather(1, taught.head)
    theirs = (taught.x / 2.5).softmax(dim=1)
    whole = (theirs * (theirs.log() - ours)).sum(dim=1)
    torch.testing.assert_close(found.divergences, whole)


def test_gradients_of_a_teacher_of_some_logits_agree_with_finite_differences() -> None:
    torch, x, table, ids = logit_readings(11, 1)
    from nanochat.backends.torch.loss import readings

    taught = stored_teaching(2.5)

    def read(x: Any, table: Any) -> Any:
        return readings(x, table, ids, torch.float64, teaching=taught).divergences

    assert torch.autograd.gradcheck(read, [x, table])


def stored_teaching(temperature: float) -> Any:
    """A teacher's logits of three entries of the vocabulary."""
    torch = pytest.importorskip("torch")
    from nanochat.backends.torch.loss import Teaching

    generator = torch.Generator().manual_seed(2)
    ids = torch.stack([torch.randperm(11, generator=generator)[:3] for _ in range(7)])
    logits = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return Teaching(x=logits, head=ids, temperature=temperature)


def teaching(temperature: float) -> Any:
    """A teacher of another width, with the same vocabulary."""
    torch = pytest.importorskip("torch")
    from nanochat.backends.torch.loss import Teaching

    generator = torch.Generator().manual_seed(1)
    x, table = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, 11))
    return Teaching(x=x, head=table, temperature=temperature)


@pytest.mark.parametrize(
    "which", ["losses", "partitions", "means", "entropies", "divergences", "all"]
)
@pytest.mark.parametrize("targets", [1, 3])
def test_gradients_of_readings_agree_with_finite_differences(which: str, targets: int) -> None:
    torch, x, table, ids = logit_readings(11, targets)
    from nanochat.backends.torch.loss import readings

    taught = teaching(2.5)

    def read(x: Any, table: Any) -> Any:
        found = readings(x, table, ids, torch.float64, means=True, entropies=True, teaching=taught)
        return tuple(vars(found).values()) if which == "all" else getattr(found, which)

    assert torch.autograd.gradcheck(read, [x, table])


def test_readings_in_several_pieces_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, x, table, ids = logit_readings(11, 2)
    from nanochat.backends.torch import loss

    def gradients() -> Any:
        found = loss.readings(
            x, table, ids, torch.float64, means=True, entropies=True, teaching=teaching(2.0)
        )
        return torch.autograd.grad(sum(each.sum() for each in vars(found).values()), [x, table])

    whole = gradients()
    monkeypatch.setattr(loss, "pieces", lambda *_: [slice(i, i + 3) for i in (0, 3, 6)])

    torch.testing.assert_close(gradients(), whole)


@pytest.mark.parametrize("count", [1, 3, 256, 600])
def test_gradients_of_products_in_another_type_are_those_of_all_pieces(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from nanochat.backends.torch import loss

    generator = torch.Generator().manual_seed(0)
    x, table = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (700, 11))
    ids = torch.randint(11, (700, 1), generator=generator)
    monkeypatch.setattr(
        loss, "pieces", lambda *_: [slice(i, i + count) for i in range(0, 700, count)]
    )

    found = loss.readings(x, table, ids, torch.bfloat16).losses.sum()
    gradients = torch.autograd.grad(found, [x, table])

    whole = torch.nn.functional.cross_entropy(x @ table.T, ids[:, 0], reduction="sum")
    for found, expected in zip(gradients, torch.autograd.grad(whole, [x, table]), strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("asked", [False, True])
def test_a_compiler_sees_readings_as_one_node(asked: bool) -> None:
    torch, x, table, ids = logit_readings(11, 1)
    from nanochat.backends.torch import loss

    taught = teaching(2.0)
    teacher = (taught.x, taught.head, 2.0) if asked else (None, None, 1.0)

    torch.library.opcheck(loss._forward, (x, table, ids, torch.float32, asked, asked, *teacher))


# Logits of 4,096 tokens would take 1 GiB, and so would their gradient.
LARGE = """
import resource
import torch
from nanochat.backends.torch.ops import TorchOps
from nanochat.backends.torch.linears import FloatLinear

x = torch.randn(1, 4096, 16, requires_grad=True)
values = torch.randn(65536, 16, requires_grad=True)
targets = torch.arange(4096)[None]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = FloatLinear(values=values, activation_block=16)
TorchOps("cpu").cross_entropy(x, table, targets).mean().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_logits_are_never_whole() -> None:
    pytest.importorskip("torch")

    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)

    # Kilobytes on Linux, bytes on macOS.
    unit = 1024 if sys.platform == "linux" else 1
    assert int(done.stdout) * unit < 300 * 2**20
