"""This file holds the torch backend: eager or compiled, on CPU and CUDA, for inference and for training."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nanochat.backends.host import num_cores
from nanochat.backends.reference.ops import permutation_matrices, pieces
from nanochat.backends.torch.delta import chunked_delta_rule, delta_step
from nanochat.backends.torch.linears import (
    FloatLinear,
    Leaf,
    copied,
    prepare_leaf,
    products,
    rounded_activations,
    rows_of,
)
from nanochat.backends.torch.loss import Readings, Teaching, readings
from nanochat.backends.torch.state import TorchState
from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws, sample
from nanochat.errors import BackendError
from nanochat.ops import Slot, feed_forward, leaving_loop
from nanochat.rotary import Rotation
from nanochat.rows import Group, Step
from nanochat.weights import FeedForward, Mhc, Stored, Weights, map_leaves, replace_leaf

__all__ = ["TorchOps", "cuda_is_available", "mhc_logits"]


class TorchOps:
    """Torch implementation of `nanochat.ops.Ops`, where every method is specified.

    Parameters
    ----------
    device : str
        "auto" is CUDA if it is there, else the CPU.
    dtype : torch.dtype
        Of the products with weights in floats. In bfloat16 both operands' codes are exact and their scales round.
    num_threads : int, optional
        Threads of the CPU that torch uses in the whole process; by default torch's own choice.
    """

    name = "torch"
    is_exact = False

    def __init__(
        self,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        *,
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendError(
                f"device {device!r} is not here: torch {torch.__version__} finds no CUDA device; pass 'cpu' or 'auto'"
            )
        self.torch_device = torch.device(device)
        self.dtype = dtype

    @property
    def device(self) -> str:
        return str(self.torch_device)

    @property
    def details(self) -> dict[str, object]:
        dtype = str(self.dtype).removeprefix("torch.")
        if self.torch_device.type == "cuda":
            return {"device_name": torch.cuda.get_device_name(self.torch_device), "dtype": dtype}
        return {"threads": torch.get_num_threads(), "cores": num_cores(), "dtype": dtype}

    @property
    def free_bytes(self) -> int | None:
        if self.torch_device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        return int(free)

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Move all leaves to the device; ternary codes stay packed, latent weights are rounded and stay floats."""
        return map_leaves(lambda name, leaf: prepare_leaf(name, leaf, self.torch_device), weights)

    def tokens(self, ids: NDArray[np.int64]) -> Tensor:
        return torch.tensor(np.asarray(ids, np.int64), device=self.torch_device)

    def array(self, values: NDArray[np.float32]) -> Tensor:
        return copied(np.asarray(values, np.float32), self.torch_device)

    def numpy(self, x: Tensor) -> NDArray[np.float32]:
        return np.array(x.detach().to("cpu", torch.float32).numpy())

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> TorchState:
        return TorchState(slots, self.torch_device, rows=rows, capacity=capacity, pages=pages)

    def embed(self, tokens: Tensor, table: Leaf) -> Tensor:
        return rows_of(table, tokens)

    def rms_norm(self, x: Tensor, gain: Leaf, *, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * _dense(gain)

    def project(self, x: Tensor, *linears: Leaf) -> tuple[Tensor, ...]:
        return products(x, linears, self.dtype)

    def rotate(self, x: Tensor, signs: Leaf, *, block: int, inverse: bool) -> Tensor:
        y = x if inverse else x * _dense(signs)
        h = 1
        while h < block:
            lower, upper = y.unflatten(-1, (-1, 2, h)).unbind(-2)
            y = torch.stack([lower + upper, lower - upper], dim=-2).flatten(-3)
            h *= 2
        y = y * float(np.float32(block**-0.5))
        return y * _dense(signs) if inverse else y

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * float(np.float32(factor))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def parameter(self, leaf: Leaf) -> Tensor:
        return _dense(leaf)

    def last(self, x: Tensor, *, state: TorchState | None) -> Tensor:
        if state is None:
            return x[:, -1:]
        step = _step(state)
        return x[:, state.tell("last", step.last_tokens)] if len(step.rows) < x.shape[1] else x

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Tensor) -> Tensor:
        return x.flatten(-2)

    def rope(
        self,
        x: Tensor,
        *,
        rotation: Rotation,
        state: TorchState | None,
        segments: Tensor | None = None,
    ) -> Tensor:
        frequency = torch.tensor(rotation.frequencies, device=x.device)
        if state is None:
            positions = torch.arange(x.shape[1], device=x.device)[None, :]
            if segments is not None:
                starts = torch.where(_begins(segments), positions, 0).cummax(dim=1)[0]
                positions = positions - starts
        else:
            positions = state.tell("positions", _step(state).positions)[None, :]
        angle = positions.float()[:, :, None, None] * frequency
        cos, sin = angle.cos() * rotation.magnitude, angle.sin() * rotation.magnitude
        half, dims = rotation.dims // 2, rotation.dims
        first, second, rest = x[..., :half], x[..., half:dims], x[..., dims:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: TorchState | None,
        slot: int,
        segments: Tensor | None = None,
    ) -> Tensor:
        if segments is not None:
            same = (segments[:, :, None] == segments[:, None, :]).tril()
            return _attend(q, k, v, same[:, None], self.dtype)
        if state is None:
            return _attend(q, k, v, None, self.dtype)
        self.append_kv(k, v, state=state, slot=slot)

        def attend(group: Group, queries: Tensor) -> Tensor:
            keys, values = state.kept(slot, group)
            positions = group.starts[:, None] + np.arange(group.count)
            seen = state.tell(("seen", group.count), positions)
            visible = torch.arange(keys.shape[1], device=q.device) <= seen[:, :, None]
            return _attend(queries, keys, values, visible[:, None], torch.float32)

        return _by_group(state, attend, q)

    def append_kv(self, k: Tensor, v: Tensor, *, state: TorchState, slot: int) -> None:
        state.append_kv(slot, k[0], v[0])

    def short_conv(
        self,
        x: Tensor,
        kernel: Leaf,
        *,
        state: TorchState | None,
        slot: int,
        segments: Tensor | None = None,
    ) -> Tensor:
        weight = _dense(kernel)
        taps = weight.shape[1]

        def convolve(padded: Tensor) -> Tensor:
            y = functional.conv1d(padded.mT, weight[:, None], groups=weight.shape[0]).mT
            return functional.silu(y)

        if segments is not None:
            # Of each earlier token of the same document: one convolution would reach into the one before.
            y = weight[:, -1] * x
            for back in range(1, min(taps, x.shape[1])):
                same = segments[:, back:] == segments[:, :-back]
                part = weight[:, -1 - back] * x[:, :-back] * same[:, :, None]
                y = y + functional.pad(part, (0, 0, back, 0))
            return functional.silu(y)
        if state is None:
            return convolve(functional.pad(x, (0, 0, taps - 1, 0)))

        def of_group(group: Group, x: Tensor) -> Tensor:
            rows, (before,) = state.tell(("rows", group.count), group.rows), state.arrays[slot]
            padded = torch.cat([before[rows], x], dim=1)
            before[rows] = padded[:, padded.shape[1] - (taps - 1) :]
            return convolve(padded)

        return _by_group(state, of_group, x)

    def delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        decay: Tensor,
        log_rate: Leaf,
        time_bias: Leaf,
        *,
        state: TorchState | None,
        slot: int,
        segments: Tensor | None = None,
    ) -> Tensor:
        share = v.shape[2] // k.shape[2]
        q, k = _unit(q) / q.shape[-1] ** 0.5, _unit(k)
        if share > 1:
            q, k = (x.repeat_interleave(share, dim=2) for x in (q, k))
        log_keep = -_dense(log_rate).exp() * functional.softplus(
            decay + _dense(time_bias), threshold=30.0
        )
        if segments is not None:
            # A document begins with nothing of what was remembered before.
            log_keep = log_keep.masked_fill(_begins(segments)[:, :, None], -torch.inf)
        if state is None:
            return chunked_delta_rule(q, k, v, beta.sigmoid(), log_keep, None)[0]

        def of_group(group: Group, *given: Tensor) -> Tensor:
            rows, (memory,) = state.tell(("rows", group.count), group.rows), state.arrays[slot]
            q, k, v, rate, log_keep = given
            rule = delta_step if group.count == 1 else chunked_delta_rule
            y, memory[rows] = rule(q, k, v, rate, log_keep, memory[rows])
            return y

        return _by_group(state, of_group, q, k, v, beta.sigmoid(), log_keep)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    def relu2(self, x: Tensor, up: Tensor | None) -> Tensor:
        y = functional.relu(x).square()
        return y if up is None else y * up

    def gate(self, x: Tensor, logits: Tensor) -> Tensor:
        return x * logits.sigmoid()

    def experts(
        self,
        x: Tensor,
        logits: Tensor,
        networks: Sequence[FeedForward[Leaf]],
        *,
        top_k: int,
        activation: Activation,
        eps: float,
    ) -> Tensor:
        rows, scores = x.flatten(0, 1), logits.flatten(0, 1)
        ordered, chosen = scores.sort(dim=1, descending=True, stable=True)
        shares = ordered[:, :top_k].softmax(dim=1).flatten()
        # Tokens in the order of their experts, so that those of each are together: one wait for the device, to know how
        # many they are.
        order = chosen[:, :top_k].flatten().argsort(stable=True)
        counts = chosen[:, :top_k].flatten().bincount(minlength=len(networks)).tolist()
        tokens = order // top_k
        parts = rows[tokens].split(counts)
        found = [
            feed_forward(part, network, self, activation=activation, eps=eps)
            for part, network in zip(parts, networks, strict=True)
            if len(part)
        ]
        # Back in the order of the tokens: adding at places is in no order on a GPU.
        of_token = torch.cat(found)[order.argsort()] * shares[:, None]
        return of_token.view(len(rows), top_k, -1).sum(dim=1).view_as(x)

    def mhc_open(self, x: Tensor, num_streams: int) -> Tensor:
        return x[:, :, None, :].expand(-1, -1, num_streams, -1)

    def mhc_read(
        self, streams: Tensor, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        n = streams.shape[2]
        read, write, mix = mhc_logits(streams, site, eps)
        u = (read.sigmoid()[..., :, None] * streams).sum(dim=2)
        return u, 2 * write.sigmoid(), None if mix is None else _mix(mix, n, mixer, iterations)

    def mhc_write(self, streams: Tensor, y: Tensor, post: Tensor, mix: Tensor | None) -> Tensor:
        if mix is None:
            mixed = streams
        elif mix.ndim == 2:
            # A sum of n scaled streams fuses with the addition; a product with an n x n matrix does not.
            mixed = torch.stack(
                [
                    sum(
                        (mix[i, j] * streams[:, :, j] for j in range(1, mix.shape[0])),
                        mix[i, 0] * streams[:, :, 0],
                    )
                    for i in range(mix.shape[0])
                ],
                dim=2,
            )
        else:
            mixed = mix @ streams
        return mixed + post[..., :, None] * y[:, :, None, :]

    def mhc_close(self, streams: Tensor) -> Tensor:
        return streams.mean(dim=2)

    def survival(self, previous: Tensor | None, logits: Tensor) -> Tensor:
        stay = logits.sigmoid()
        return stay if previous is None else previous * stay

    def loop(
        self,
        x: Tensor,
        step: Callable[[Tensor, Tensor | None], Tensor],
        survive: Callable[[Tensor, Tensor | None], Tensor],
        finish: Callable[[int], None],
        *,
        steps: int,
        threshold: float,
    ) -> Tensor:
        def leave(survival: Tensor) -> tuple[Tensor, bool]:
            left = survival <= 1.0 - threshold
            return left, bool(left.all())

        return leaving_loop(x, step, survive, finish, self, steps=steps, leave=leave)

    def select(self, mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(mask.view(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)

    def sample(self, logits: Tensor, draws: Draws) -> Drawn:
        # On the host: a step there has one row of logits for each sequence and waits for its token anyway, since text
        # and stop strings are the host's; and a draw by torch's own functions would be another definition.
        return sample(self.numpy(logits), draws)

    # Loss.

    def cross_entropy(
        self, x: Tensor, table: Leaf, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """See :meth:`nanochat.ops.Ops.cross_entropy`; tables of codes have no gradient."""
        rows, ids = x.flatten(0, 1), targets.flatten().clamp(min=0)
        if isinstance(table, FloatLinear | Tensor):
            losses = self.readings(rows, table, ids[:, None]).losses
        else:
            parts = []
            for part in pieces(len(rows), len(table.scales)):
                (logits,) = products(rows[part], (table,), self.dtype)
                parts.append(functional.cross_entropy(logits, ids[part], reduction="none"))
            losses = torch.cat(parts)
        losses = losses.view(targets.shape)
        if weights is None:
            return losses.where(targets >= 0, 0.0)
        return losses.where((targets >= 0) & (weights != 0), 0.0) * weights

    def readings(
        self,
        x: Tensor,
        table: FloatLinear | Tensor,
        targets: Tensor,
        *,
        means: bool = False,
        entropies: bool = False,
        teaching: Teaching | None = None,
    ) -> Readings:
        """What else a loss may need of rows (N, C) and targets (N, K); see `nanochat.backends.torch.loss.readings`."""
        if isinstance(table, FloatLinear):
            x, values = rounded_activations(x, table.activation_block), table.values
        else:
            values = table.to(x.dtype)
        dtype = self.dtype if isinstance(table, FloatLinear) else x.dtype
        return readings(
            x, values, targets, dtype, means=means, entropies=entropies, teaching=teaching
        )

    # Weights that move.

    def replace(self, weights: Weights[Leaf], name: str, leaf: Stored) -> Weights[Leaf]:
        return replace_leaf(weights, name, prepare_leaf(name, leaf, self.torch_device))


def cuda_is_available() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def _step(state: TorchState) -> Step:
    assert state.step is not None, "call `begin` of the state first"
    return state.step


def _by_group(state: TorchState, compute: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """What `compute` gives for each group of the step, from arrays (M, T, ...), put where the group's tokens are."""
    groups = _step(state).groups()
    if groups[0].tokens is None:
        shape = len(groups[0].rows), groups[0].count
        y = compute(groups[0], *(x.reshape(*shape, *x.shape[2:]) for x in given))
        return y.reshape(1, -1, *y.shape[2:])
    results: list[tuple[Tensor, Tensor]] = []
    for group in groups:
        assert group.tokens is not None
        tokens = state.tell(("tokens", group.count), group.tokens)
        results.append((tokens, compute(group, *(x[0, tokens] for x in given))))
    y = results[0][1].new_empty(given[0].shape[1], *results[0][1].shape[2:])
    for tokens, part in results:
        y[tokens] = part
    return y[None]


def _begins(segments: Tensor) -> Tensor:
    """Where a document begins, (B, T)."""
    return functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)


def mhc_logits(
    streams: Tensor, site: Mhc[Leaf], eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits of reading, writing and mixing, those per token of a dynamic site included."""
    n = streams.shape[2]
    read, write = _dense(site.read), _dense(site.write)
    mix = None if site.mix is None else _dense(site.mix)
    if site.projection is not None and site.gates is not None:
        flat = streams.flatten(2)
        root = torch.rsqrt(flat.square().mean(dim=-1, keepdim=True) + eps)
        found = functional.linear(flat, _dense(site.projection)) * root
        gates = _dense(site.gates)
        read = read + gates[0] * found[..., :n]
        write = write + gates[1] * found[..., n : 2 * n]
        if mix is not None:
            mix = mix + gates[2] * found[..., 2 * n :]
    return read, write, mix


def _dense(leaf: Leaf) -> Tensor:
    assert isinstance(leaf, Tensor)
    return leaf


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
    given = q.dtype
    q, k, v = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    y = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=visible is None
    )
    return y.transpose(1, 2).to(given)


def _mix(logits: Tensor, n: int, mixer: Mixer, iterations: int) -> Tensor:
    if mixer == "lite":
        table = torch.from_numpy(permutation_matrices(n).reshape(-1, n * n)).to(logits)
        mixed: Tensor = (logits.softmax(dim=-1) @ table).unflatten(-1, (n, n))
        return mixed
    matrix: Tensor = (logits - logits.amax(dim=-1, keepdim=True)).exp().unflatten(-1, (n, n))
    for _ in range(iterations):
        matrix = matrix / matrix.sum(dim=-2, keepdim=True)
        matrix = matrix / matrix.sum(dim=-1, keepdim=True)
    return matrix


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
