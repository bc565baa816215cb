"""This file holds the torch backend: eager or compiled, on CPU and CUDA, for inference and for training."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nanochat.backends.host import num_cores
from nanochat.backends.reference.ops import check_room, permutation_matrices
from nanochat.backends.torch.delta import chunked_delta_rule, delta_step
from nanochat.backends.torch.linears import (
    LatentLinear,
    Leaf,
    TableLinear,
    copied,
    prepare_leaf,
    products,
    quantize_activations,
    rounded_weight,
)
from nanochat.config import Mixer
from nanochat.errors import BackendError
from nanochat.ops import Slot
from nanochat.weights import Mhc, Stored, Weights, map_leaves

__all__ = ["TorchOps", "TorchState", "cuda_is_available"]

_TYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


class TorchState:
    """Lengths of the sequences (B,), and the tensors of every slot, each with B in front.

    Keys and values are (B, capacity, heads, features) in the slot's storage; int8 has scales (B, capacity, heads, 1).
    """

    def __init__(
        self, slots: Sequence[Slot], batch: int, capacity: int, device: torch.device
    ) -> None:
        self.slots = tuple(slots)
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        # The longest length, known without asking the device.
        self.longest = 0
        self.tensors: list[list[Tensor]] = []
        for slot in slots:
            if slot.kind == "attention":
                shape: tuple[int, ...] = (batch, capacity, slot.heads, slot.key_dim)
                kind = _TYPES[slot.storage]
                tensors = [torch.zeros(shape, dtype=kind, device=device) for _ in range(2)]
                if slot.storage == "int8":
                    tensors += [torch.zeros((*shape[:3], 1), device=device) for _ in range(2)]
                self.tensors.append(tensors)
                continue
            if slot.kind == "conv":
                shape = (batch, slot.taps - 1, slot.features)
            else:
                shape = (batch, slot.heads, slot.key_dim, slot.value_dim)
            self.tensors.append([torch.zeros(shape, device=device)])

    def keep(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Append keys and values (B, T, heads, features) after each sequence's length."""
        places = self.lengths[:, None] + torch.arange(k.shape[1], device=k.device)
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        tensors = self.tensors[slot]
        if self.slots[slot].storage != "int8":
            tensors[0][rows, places] = k.to(tensors[0].dtype)
            tensors[1][rows, places] = v.to(tensors[1].dtype)
            return
        for number, x in enumerate((k, v)):
            codes, scales = quantize_activations(x, x.shape[-1])
            # The codes of a vector that is not finite have no meaning.
            scales = torch.where(scales.isfinite(), scales, torch.nan)
            tensors[number][rows, places] = codes.squeeze(-2).nan_to_num().to(torch.int8)
            tensors[2 + number][rows, places] = scales

    def kept(self, slot: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first positions, as float32."""
        tensors = [tensor[:, :end] for tensor in self.tensors[slot]]
        if self.slots[slot].storage != "int8":
            return tensors[0].float(), tensors[1].float()
        return tensors[0] * tensors[2], tensors[1] * tensors[3]


class TorchOps:
    """Torch implementation of `nanochat.ops.Ops`, where every method is specified.

    Parameters
    ----------
    device : str
        "auto" is CUDA if it is there, else the CPU.
    dtype : torch.dtype
        Of the products with latent weights. In bfloat16 both operands' codes are exact and their scales round.
    num_threads : int, optional
        Threads of the CPU that torch uses in the whole process; by default torch's own choice.
    """

    name = "torch"

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
        self.device = torch.device(device)
        self.dtype = dtype

    @property
    def details(self) -> dict[str, object]:
        """See `nanochat.backends.describe.Detailed`."""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.device.type == "cuda":
            return {"device_name": torch.cuda.get_device_name(self.device), "dtype": dtype}
        return {"threads": torch.get_num_threads(), "cores": num_cores(), "dtype": dtype}

    @property
    def free_bytes(self) -> int | None:
        """Bytes of its own memory that the device has free; `None` for the CPU, which has the machine's."""
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Move all leaves to the device; ternary codes stay packed, latent weights stay latent."""
        return map_leaves(lambda name, leaf: prepare_leaf(name, leaf, self.device), weights)

    def tokens(self, ids: NDArray[np.int64]) -> Tensor:
        return torch.tensor(np.asarray(ids, np.int64), device=self.device)

    def array(self, values: NDArray[np.float32]) -> Tensor:
        return copied(np.asarray(values, np.float32), self.device)

    def numpy(self, x: Tensor) -> NDArray[np.float32]:
        return np.array(x.detach().to("cpu", torch.float32).numpy())

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> TorchState:
        return TorchState(slots, batch, capacity, self.device)

    def stack(self, states: Sequence[TorchState]) -> TorchState:
        whole = TorchState(states[0].slots, 0, states[0].capacity, self.device)
        whole.lengths = torch.cat([state.lengths for state in states])
        whole.longest = max(state.longest for state in states)
        whole.tensors = [
            [torch.cat(parts) for parts in zip(*slot, strict=True)]
            for slot in zip(*(state.tensors for state in states), strict=True)
        ]
        return whole

    def advance(self, state: TorchState, tokens: Tensor) -> None:
        state.lengths = state.lengths + tokens.shape[1]
        state.longest += tokens.shape[1]

    def embed(self, tokens: Tensor, table: Leaf) -> Tensor:
        if isinstance(table, TableLinear):
            return table.codes[tokens].float() * table.scales[tokens]
        if isinstance(table, LatentLinear):
            return functional.embedding(tokens, rounded_weight(table))
        assert isinstance(table, Tensor)
        return functional.embedding(tokens, table)

    def rms_norm(self, x: Tensor, gain: Leaf, *, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * _dense(gain)

    def project(self, x: Tensor, *linears: Leaf) -> tuple[Tensor, ...]:
        return products(x, linears, self.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def parameter(self, leaf: Leaf) -> Tensor:
        return _dense(leaf)

    def last(self, x: Tensor) -> Tensor:
        return x[:, -1:]

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Tensor) -> Tensor:
        return x.flatten(-2)

    def rope(self, x: Tensor, *, theta: float, state: TorchState | None) -> Tensor:
        half = x.shape[-1] // 2
        exponents = -torch.arange(half, device=x.device, dtype=torch.float64) / half
        frequency = (theta**exponents).float()
        positions = torch.arange(x.shape[1], device=x.device)[None, :]
        if state is not None:
            positions = positions + state.lengths[:, None]
        angle = positions.float()[:, :, None, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, state: TorchState | None, slot: int
    ) -> Tensor:
        if state is None:
            return _attend(q, k, v, None, self.dtype)
        self.append_kv(k, v, state=state, slot=slot)
        end = state.longest + q.shape[1]
        k, v = state.kept(slot, end)
        queries = state.lengths[:, None] + torch.arange(q.shape[1], device=q.device)
        visible = torch.arange(end, device=q.device) <= queries[:, :, None]
        return _attend(q, k, v, visible[:, None], torch.float32)

    def append_kv(self, k: Tensor, v: Tensor, *, state: TorchState, slot: int) -> None:
        check_room(state.longest, k.shape[1], state.capacity)
        state.keep(slot, k, v)

    def short_conv(self, x: Tensor, kernel: Leaf, *, state: TorchState | None, slot: int) -> Tensor:
        weight = _dense(kernel)
        taps = weight.shape[1]
        if state is None:
            padded = functional.pad(x, (0, 0, taps - 1, 0))
        else:
            padded = torch.cat([state.tensors[slot][0], x], dim=1)
            state.tensors[slot][0] = padded[:, padded.shape[1] - (taps - 1) :].clone()
        y = functional.conv1d(padded.mT, weight[:, None], groups=weight.shape[0]).mT
        return functional.silu(y)

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
    ) -> Tensor:
        q = _unit(q) / q.shape[-1] ** 0.5
        k = _unit(k)
        log_keep = -_dense(log_rate).exp() * functional.softplus(
            decay + _dense(time_bias), threshold=30.0
        )
        memory = None if state is None else state.tensors[slot][0]
        rule = delta_step if q.shape[1] == 1 and memory is not None else chunked_delta_rule
        out, memory = rule(q, k, v, beta.sigmoid(), log_keep, memory)
        if state is not None:
            state.tensors[slot][0] = memory
        return out

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
        networks: Sequence[Callable[[Tensor], Tensor]],
        *,
        top_k: int,
    ) -> Tensor:
        rows, scores = x.flatten(0, 1), logits.flatten(0, 1)
        ordered, chosen = scores.sort(dim=1, descending=True, stable=True)
        chosen, shares = chosen[:, :top_k], ordered[:, :top_k].softmax(dim=1)
        out = torch.zeros_like(rows)
        for e, network in enumerate(networks):
            token, rank = (chosen == e).nonzero(as_tuple=True)
            if token.numel():
                out = out.index_add(0, token, shares[token, rank, None] * network(rows[token]))
        return out.view_as(x)

    def mhc_open(self, x: Tensor, num_streams: int) -> Tensor:
        return x[:, :, None, :].expand(-1, -1, num_streams, -1)

    def mhc_read(
        self, streams: Tensor, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        n = streams.shape[2]
        read, write = _dense(site.read), _dense(site.write)
        mix = None if site.mix is None else _dense(site.mix)
        if site.projection is not None and site.gates is not None:
            flat = streams.flatten(2)
            root = torch.rsqrt(flat.square().mean(dim=-1, keepdim=True) + eps)
            found = functional.linear(flat, _projection(site.projection)) * root
            gates = _dense(site.gates)
            read = read + gates[0] * found[..., :n]
            write = write + gates[1] * found[..., n : 2 * n]
            if mix is not None:
                mix = mix + gates[2] * found[..., 2 * n :]
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

    def at_most(self, x: Tensor, threshold: float) -> Tensor:
        return x <= threshold

    def every(self, mask: Tensor) -> bool:
        return bool(mask.all())

    def select(self, mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(mask.view(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)


def cuda_is_available() -> bool:
    """Whether torch finds a CUDA device."""
    return torch.cuda.is_available()


def _dense(leaf: Leaf) -> Tensor:
    assert isinstance(leaf, Tensor)
    return leaf


def _projection(leaf: Leaf) -> Tensor:
    return rounded_weight(leaf) if isinstance(leaf, LatentLinear) else _dense(leaf)


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
