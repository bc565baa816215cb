"""This file holds a model at work: tokens in, logits out.

A `Runner` continues the rows of a state and nothing else; `Session` chooses tokens and makes texts of them.

Legend: M rows of a step, N flat tokens, T tokens of a sequence, V vocabulary.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.draws import Drawn, Draws, sample
from nanochat.errors import BackendError, InputError, ShapeError, did_you_mean
from nanochat.generation.sampling import Sampler, fill_draws
from nanochat.init import freeze_leaf
from nanochat.model import forward, forward_ahead, hidden_states, losses, read_ahead
from nanochat.ops import Described, Ops, Repeats, Storage
from nanochat.rows import RowState
from nanochat.shapes import shapes
from nanochat.slots import slots
from nanochat.weights import Weights, leaf_of, named_leaves

__all__ = ["PREFILL_CHUNK", "Choices", "Engine", "Runner", "check_ids"]

Array = TypeVar("Array")
Leaf = TypeVar("Leaf")
State = TypeVar("State", bound=RowState[Any])

# Rows of logits that are turned into probabilities at once, which bounds the float64 copy.
_ROWS = 64
# Tokens of a prompt that are read at once, which bounds the memory of activations.
PREFILL_CHUNK = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Choices:
    """The tokens that were chosen for the first rows of a step, as `nanochat.draws.Drawn` has them.

    `logits` are those of all rows of the step, if they were asked for or one has no token for theirs. `ahead` is what
    the extra heads have for each token that was chosen, (tokens, heads, C), in a state that has them.
    """

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    normalizers: NDArray[np.float64]
    logits: NDArray[np.float32] | None
    ahead: NDArray[np.float32] | None = None


@runtime_checkable
class Runner(Described, Protocol[State]):
    """A model at work: `Engine` on a backend, or a whole graph in a runtime of its own.

    `kv_cache` is what keys and values are kept in while text is generated.
    """

    config: ModelConfig
    kv_cache: Storage

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after every token of a sequence, (T, V)."""
        ...

    def losses(self, ids: Sequence[int]) -> NDArray[np.floating]:
        """Nats that each token of a sequence but the first costs, (T - 1,)."""
        logits, targets = self.logits(ids[:-1]), np.array(ids[1:])
        losses = np.empty(len(targets))
        for start in range(0, len(targets), _ROWS):
            rows = logits[start : start + _ROWS].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            chosen = rows[np.arange(len(rows)), targets[start : start + _ROWS]]
            losses[start : start + _ROWS] = np.log(np.exp(rows).sum(axis=1)) - chosen
        return losses

    def losses_of_all(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
        """The losses of each of several sequences, which are read together where that is faster."""
        return [self.losses(ids) for ids in sequences]

    def hidden(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """What the head reads out after every token of a sequence, (T, C)."""
        del ids
        raise BackendError(
            f"backend {self.name} gives logits only: load the model with another backend, such as numba"
        )

    def new_state(
        self, *, rows: int, capacity: int, pages: int | None = None, ahead: bool = False
    ) -> State:
        """A state that holds no row yet, with room for rows of `capacity` tokens; see `nanochat.rows.RowState`.

        With `ahead`, the extra heads read what the model reads.
        """
        ...

    @property
    def num_ahead(self) -> int:
        """Extra heads, each of which says a token after the next one."""
        return 0

    def ahead(
        self, hidden: NDArray[np.float32], samplers: Sequence[Sampler], *, vocab_size: int
    ) -> NDArray[np.int64]:
        """The tokens (M, heads) that extra heads say after the next one, from `Choices.ahead` of M samplers."""
        del hidden, samplers, vocab_size
        raise BackendError(
            f"backend {self.name} has no extra heads: load the model with backend numba"
        )

    def step(
        self,
        state: State,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        every: bool = False,
    ) -> NDArray[np.float32]:
        """Continue some rows by some tokens each; the logits after the last one of each, (M, V).

        With `every`, the logits after all tokens, those of the first row first, (N, V).
        """
        ...

    def draw(
        self,
        state: State,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        samplers: Sequence[Sampler],
        *,
        vocab_size: int,
        with_logits: bool = False,
        drafted: Sequence[int] = (),
    ) -> "Choices":
        """Continue some rows by some tokens each, and choose what follows the first of them, one for each sampler.

        A token is below `vocab_size`; a model may have more rows in its table than its tokenizer has tokens.

        With `drafted`, a number for each row, so many of its last tokens are guesses, and a token is chosen also for
        the place of each, as if those before it had been chosen: 1 + drafted tokens for each sampler, one sampler for
        each row.
        """
        del with_logits
        guessed, _, drawn = _of_drafts(tokens, drafted)
        logits = self.step(state, rows, tokens, every=bool(drafted))
        logits = logits[drawn] if drafted else logits
        return self.choose(logits, samplers, vocab_size=vocab_size, guessed=guessed)

    def choose(
        self,
        logits: NDArray[np.float32],
        samplers: Sequence[Sampler],
        *,
        vocab_size: int,
        guessed: Sequence[Sequence[int]] = (),
    ) -> "Choices":
        """Choose a token for each sampler from its row of logits, the first of (M, V), with the bits of `draw`.

        With guessed tokens, a sampler has a row for each of them, too; see `nanochat.generation.sampling.fill_draws`.
        """
        count = len(samplers) + sum(map(len, guessed))
        draws = Draws.greedy(count, vocab_size=vocab_size)
        fill_draws(draws, samplers, guessed=guessed)
        return Choices(**vars(self._sample(logits[:count], draws)), logits=logits)

    def _sample(self, logits: NDArray[np.float32], draws: Draws) -> Drawn:
        """What `draws` draw of rows of logits (M, V)."""
        return sample(logits, draws)

    def extend(self, state: State, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Let one row read tokens, in parts if they are many; the logits after the last one, (V,)."""
        logits = np.empty(0, np.float32)
        for start in range(0, len(_require_tokens(ids)), PREFILL_CHUNK):
            logits = self.step(state, [row], [ids[start : start + PREFILL_CHUNK]])[0]
        return logits

    def prefill(self, ids: Sequence[int], *, capacity: int) -> tuple[State, NDArray[np.float32]]:
        """A state of one row that has read a prompt, with room for `capacity` tokens, and the last logits, (V,)."""
        _require_tokens(ids)
        state = self.new_state(rows=1, capacity=max(capacity, 1))
        return state, self.extend(state, state.admit(), ids)

    def decode(self, tokens: Sequence[int], state: State) -> NDArray[np.float32]:
        """Continue every row of a state by one token; the logits after it, (M, V)."""
        return self.step(state, state.rows, [[token] for token in _require_tokens(tokens)])


class Engine(Runner[State], Generic[Array, Leaf, State]):
    """A model on a backend: tokens in, logits out, both NumPy's.

    Parameters
    ----------
    weights : tree of the backend's leaves
        From ``ops.prepare``.
    kv_cache : {"float32", "float16", "int8", "int4"}
        What keys and values are kept in while text is generated; see `nanochat.ops.Slot`. `logits` rounds none.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights[Leaf],
        ops: Ops[Array, Leaf, State],
        *,
        kv_cache: Storage = "float32",
    ) -> None:
        if kv_cache not in get_args(Storage):
            raise InputError(
                f"kv_cache={kv_cache!r} is nothing that keys and values can be kept in: choose one of "
                f"{', '.join(get_args(Storage))}"
            )
        self.config = config
        self.weights = weights
        self.ops = ops
        # Asked once: to look for a protocol takes longer than some kernels.
        self._repeats: Repeats[Array, State] | None = ops if isinstance(ops, Repeats) else None
        self.kv_cache: Storage = kv_cache
        self._slots = slots(config, storage=kv_cache)
        # A backend that cannot keep them so says it now, not at the first prompt.
        ops.new_state(self._slots, rows=1, capacity=1)

    @property
    def name(self) -> str:
        return self.ops.name

    @property
    def device(self) -> str:
        return self.ops.device

    @property
    def is_exact(self) -> bool:
        return self.ops.is_exact

    @property
    def details(self) -> Mapping[str, object]:
        return self.ops.details

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        tokens = self.ops.tokens(np.array([_require_tokens(ids)], np.int64))
        logits: NDArray[np.float32] = self.ops.numpy(
            forward(tokens, self.weights, self.config, self.ops)
        )[0]
        return logits

    def hidden(self, ids: Sequence[int]) -> NDArray[np.float32]:
        tokens = self.ops.tokens(np.array([_require_tokens(ids)], np.int64))
        hidden: NDArray[np.float32] = self.ops.numpy(
            hidden_states(tokens, self.weights, self.config, self.ops)
        )[0]
        return hidden

    def losses(self, ids: Sequence[int]) -> NDArray[np.floating]:
        return self.losses_of_all([ids])[0]

    def losses_of_all(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
        # Without logits of all tokens. No token reads what stands behind it, so the shorter ones are filled up.
        lengths = [len(_require_tokens(ids[1:])) for ids in sequences]
        if not lengths:
            return []
        ids = np.zeros((len(lengths), max(lengths) + 1), np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        tokens, targets = (self.ops.tokens(part.copy()) for part in (ids[:, :-1], ids[:, 1:]))
        nats = losses(tokens, targets, self.weights, self.config, self.ops)
        found: NDArray[np.float32] = self.ops.numpy(nats)
        return [row[:length] for row, length in zip(found, lengths, strict=True)]

    def new_state(
        self, *, rows: int, capacity: int, pages: int | None = None, ahead: bool = False
    ) -> State:
        wanted = slots(self.config, storage=self.kv_cache, ahead=True) if ahead else self._slots
        return self.ops.new_state(wanted, rows=rows, capacity=capacity, pages=pages)

    @property
    def num_ahead(self) -> int:
        # One that reads the token before it was drawn with has nothing to begin with.
        return 0 if self.weights.joins else len(self.weights.ahead)

    def ahead(
        self, hidden: NDArray[np.float32], samplers: Sequence[Sampler], *, vocab_size: int
    ) -> NDArray[np.int64]:
        draws = Draws.greedy(hidden.shape[0] * hidden.shape[1], vocab_size=vocab_size)
        for row in range(draws.rows):
            sampler, later = divmod(row, hidden.shape[1])
            samplers[sampler].fill_later(draws, row, later)
        x = self.ops.array(hidden.reshape(1, draws.rows, hidden.shape[2]))
        drawn = self.ops.sample(read_ahead(x, self.weights, self.config, self.ops), draws)
        return drawn.tokens.reshape(hidden.shape[:2])

    def step(
        self,
        state: State,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        every: bool = False,
    ) -> NDArray[np.float32]:
        ids, count = self._begin(state, rows, tokens)
        if self._repeats is None or every or count > len(rows):
            logits, _ = self._forward(ids, state, only_last=not every)
        else:
            logits, _ = self._repeats.repeat(
                lambda ids: self._forward(ids, state), ids, state, kind="logits"
            )
        found: NDArray[np.float32] = self.ops.numpy(logits)[0, : None if every else len(rows)]
        state.end()
        return found

    def draw(
        self,
        state: State,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        samplers: Sequence[Sampler],
        *,
        vocab_size: int,
        with_logits: bool = False,
        drafted: Sequence[int] = (),
    ) -> Choices:
        ids, count = self._begin(state, rows, tokens)
        # Whether every token's logits are drawn from.
        every = bool(drafted) or count == len(rows)
        guessed, places, drawn_rows = _of_drafts(tokens, drafted)
        number = self._num_repeated(len(rows), count) if every else 0
        if number:
            # A step that is repeated reads its draws where they are, and may have more rows.
            key = number, vocab_size
            if key not in state.draws:
                state.draws[key] = Draws.greedy(number, vocab_size=vocab_size)
            draws = state.draws[key]
        else:
            draws = Draws.greedy(count if every else len(rows), vocab_size=vocab_size)
        fill_draws(draws, samplers, guessed=guessed, places=places)

        def step(ids: Array) -> tuple[Array, Drawn, tuple[Array, ...]]:
            logits, heads = self._forward(ids, state, only_last=not every)
            return logits, self.ops.sample(logits, draws), heads

        if self._repeats is not None and number:
            found = self._repeats.repeat(step, ids, state, kind=f"draw of {vocab_size}")
        else:
            found = step(ids)
        logits, drawn, heads = found
        state.end()
        chosen = drawn_rows if drafted else slice(len(samplers))
        tokens_chosen = drawn.tokens[chosen]
        wanted = with_logits or tokens_chosen.min(initial=0) < 0
        of_rows = drawn_rows if drafted else slice(len(rows))
        return Choices(
            tokens=tokens_chosen,
            logprobs=drawn.logprobs[chosen],
            normalizers=drawn.normalizers[chosen],
            logits=self.ops.numpy(logits)[0, of_rows] if wanted else None,
            ahead=np.stack([self.ops.numpy(y)[0, chosen] for y in heads], 1) if heads else None,
        )

    def _sample(self, logits: NDArray[np.float32], draws: Draws) -> Drawn:
        return self.ops.sample(self.ops.array(logits), draws)

    def _begin(
        self, state: State, rows: Sequence[int], tokens: Sequence[Sequence[int]]
    ) -> tuple[Array, int]:
        """The flat tokens of a step, for which there is room, and their number."""
        flat = [token for ids in tokens for token in ids]
        # Before anything is changed: a row cannot take back half a step.
        if flat and not 0 <= min(flat) <= max(flat) < self.config.vocab_size:
            raise InputError(
                f"token ids from {min(flat)} to {max(flat)} do not fit a vocabulary of {self.config.vocab_size}: use "
                "the tokenizer of this model"
            )
        state.begin(rows, [len(ids) for ids in tokens])
        return self.ops.tokens(np.array([flat], np.int64)), len(flat)

    def _num_repeated(self, rows: int, tokens: int) -> int:
        """The tokens of the step that is repeated for one whose tokens are all drawn from; 0 if none is."""
        return 0 if self._repeats is None else self._repeats.num_repeated(rows, tokens)

    def update(self, name: str, values: NDArray[np.float32]) -> None:
        """Put new values of one parameter to work: the next call uses them, also with a state that was there before.

        What a state or a prompt cache remembers of its tokens was computed with the old ones.

        Parameters
        ----------
        name : str
            As in a checkpoint, such as ``layers.0.mixer.q``.
        values : float32 array
            Of the parameter's shape. Those of a ternary or 8-bit one are latent, and are rounded as in training.

        Raises
        ------
        InputError
            If there is no such parameter.
        ShapeError
            If `values` has another shape.
        NumericError
            If a value is not finite.
        """
        specs = dict(named_leaves(shapes(self.config)))
        names = [known for known, _ in named_leaves(self.weights)]
        if name not in names or name not in specs:
            raise InputError(
                f"there is no parameter {name!r:.80}{did_you_mean(name, names)}: names are like {names[1]}"
            )
        spec = specs[name]
        if values.shape != spec.shape:
            raise ShapeError(
                f"{name} has shape {spec.shape}, the new values {values.shape}: pass them unpacked, rows first"
            )
        leaf = freeze_leaf(name, leaf_of(spec, np.asarray(values, np.float32)))
        self.weights = self.ops.replace(self.weights, name, leaf)

    def _forward(
        self, tokens: Array, state: State, *, only_last: bool = True
    ) -> tuple[Array, tuple[Array, ...]]:
        """The logits, and what extra heads have if the state is for them, too."""
        model = tokens, self.weights, self.config, self.ops, state
        if len(state.slots) == len(self._slots):
            return forward(*model, only_last=only_last), ()
        return forward_ahead(*model, only_last=only_last)


def _of_drafts(
    tokens: Sequence[Sequence[int]], drafted: Sequence[int]
) -> tuple[list[Sequence[int]], list[int], list[int]]:
    """The guesses of each row, where in the flat tokens the one before them is, and where all that is chosen after."""
    if not drafted:
        return [], [], []
    guessed: list[Sequence[int]] = []
    places: list[int] = []
    drawn: list[int] = []
    end = 0
    for ids, count in zip(tokens, drafted, strict=True):
        end += len(ids)
        first = end - count - 1
        guessed.append(ids[len(ids) - count :])
        places.append(first)
        drawn += range(first, end)
    return guessed, places, drawn


def check_ids(ids: Sequence[int], config: ModelConfig) -> None:
    """Refuse tokens that a model cannot read."""
    try:
        tokens = [*map(operator.index, ids)]
    except TypeError as error:
        raise InputError(
            f"{ids!r:.80} is not one sequence of token ids, which are integers: encode the text with the model's "
            "own tokenizer"
        ) from error
    _require_tokens(tokens)
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < config.vocab_size:
            raise InputError(
                f"token {token} is outside the model's vocabulary of {config.vocab_size}: "
                "encode the text with the model's own tokenizer"
            )


def _require_tokens(tokens: Sequence[int]) -> Sequence[int]:
    if not len(tokens):
        raise InputError("there is no token to read: pass at least one, such as <|bos|>")
    return tokens
