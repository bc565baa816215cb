"""This file holds an exported ONNX model at work in ONNX Runtime: a `Runner` and an `Artefact`.

In a file for ONNX Runtime, keys and values stay in buffers as long as the longest sequence, which the graph is given
and writes in place: a step copies none of them. A file of standard operators gets and gives ever longer ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nanochat.backends.host import num_cores
from nanochat.config import ModelConfig, config_from_dict
from nanochat.errors import ContextLengthError, FormatError, InputError
from nanochat.export.onnx.graph import Dim
from nanochat.export.onnx.standard import SESSION_CONFIG
from nanochat.export.onnx.state import memory_shapes, present_name
from nanochat.files import parse_json, require_file
from nanochat.generation.engine import Runner
from nanochat.ops import Storage
from nanochat.proof.parity import Rounding, greedy
from nanochat.proof.tolerances import TOLERANCES
from nanochat.rows import RowState
from nanochat.slots import slots

__all__ = ["OnnxEngine", "OnnxRows"]

# Tokens of a prompt that are read at once, which bounds the memory of activations and of logits.
_CHUNK = 256

# Arrays by the names of the graph's inputs that they are for.
Memory = dict[str, NDArray[np.float32]]


class SequenceMemory:
    """What a graph remembers of one sequence.

    Parameters
    ----------
    memory : mapping
        What each ``past…`` input is given next.
    mask : int64 array, shape (1, capacity)
        1 where the sequence has a token, in the first `width` columns.
    """

    def __init__(self, memory: Memory, mask: NDArray[np.int64], width: int) -> None:
        self.memory = memory
        # Where the graph writes what is not written in place; after each run the two are exchanged.
        self.spare: Memory = {}
        self.mask = mask
        self.width = width
        self.turn = 0
        self.calls: dict[int, _Call] = {}

    def advance(self, count: int) -> NDArray[np.int64]:
        """Append as many tokens, and return the mask of all."""
        self.mask[:, self.width : self.width + count] = 1
        self.width += count
        return np.ascontiguousarray(self.mask[:, : self.width])

    def copy(self) -> "SequenceMemory":
        """The same sequence in other memory."""
        memory = {name: array.copy() for name, array in self.memory.items()}
        return SequenceMemory(memory, self.mask.copy(), self.width)


class OnnxRows(RowState[SequenceMemory]):
    """The rows of a graph, each a sequence in buffers of its own: whoever forks a row copies them."""

    def __init__(self, empty: Callable[[], SequenceMemory], *, rows: int, capacity: int) -> None:
        super().__init__((), rows=rows, capacity=capacity)
        self.can_go_back = False
        self._empty = empty
        self.sequences: dict[int, SequenceMemory] = {}

    @property
    def row_bytes(self) -> int:
        """Bytes of the buffers of a row, which has all its positions from the beginning."""
        return sum(array.nbytes for array in self._empty().memory.values())

    def release(self, row: int) -> None:
        super().release(row)
        del self.sequences[row]

    def _clear(self, row: int) -> None:
        self.sequences[row] = self._empty()

    def _save(self, row: int) -> SequenceMemory:
        return self.sequences[row].copy()

    def _restore(self, row: int, recurrent: SequenceMemory) -> None:
        self.sequences[row] = recurrent.copy()

    def _copy_page(self, source: int, target: int) -> None:
        """Do nothing: every row has its own buffers."""


class OnnxEngine(Runner[OnnxRows]):
    """A file of `nanochat.export.onnx.write.export_onnx`, run by ONNX Runtime on the CPU, by default on all cores."""

    name = "onnx"
    is_exact = False
    runtime = f"onnxruntime {onnxruntime.__version__}"
    tolerance = TOLERANCES["logits"].limit
    rounding: Rounding = "same"
    device = "cpu"
    kv_cache: Storage = "float32"

    def __init__(self, path: Path, *, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            raise InputError(
                f"num_threads={num_threads}: pass 1 or more, or leave it out for all cores"
            )
        self._path = path
        self._session = _open(path, num_threads)
        self._num_threads = num_cores() if num_threads is None else num_threads
        metadata = self._session.get_modelmeta().custom_metadata_map
        if "config" not in metadata or "target" not in metadata:
            raise FormatError(
                f"{path}: written by another program: pass a file that nanochat-export wrote"
            )
        self.config: ModelConfig = config_from_dict(
            parse_json(metadata["config"].encode(), f"{path}, config")
        )
        self._in_place = metadata["target"] == "ort"
        self._shapes = memory_shapes(slots(self.config))
        _require_interface(path, self._session, self._shapes)
        self._outputs = ["logits", *map(present_name, self._shapes)]

    @property
    def details(self) -> dict[str, object]:
        return {"providers": self._session.get_providers(), "threads": self._num_threads}

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self._require_room(len(ids))
        sequence = self._new_sequence(len(ids))
        return np.concatenate([self._run(chunk, sequence)[0] for chunk in _chunks(ids)])

    def new_state(
        self, *, rows: int, capacity: int, pages: int | None = None, ahead: bool = False
    ) -> OnnxRows:
        """Rows with buffers of their own: `pages` would be shared, and are not counted; and a graph has no heads."""
        del pages, ahead
        self._require_room(capacity)
        return OnnxRows(lambda: self._new_sequence(capacity), rows=rows, capacity=capacity)

    def step(
        self,
        state: OnnxRows,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        every: bool = False,
    ) -> NDArray[np.float32]:
        """See `Runner.step`; a graph has one width for all its sequences, so rows run one after the other."""
        state.begin(rows, [len(ids) for ids in tokens])
        found = []
        for row, ids in zip(rows, tokens, strict=True):
            logits = [self._run(chunk, state.sequences[row])[0] for chunk in _chunks(ids)]
            found += logits if every else [logits[-1][-1:]]
        state.end()
        return np.concatenate(found)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        return greedy(self, ids, num_tokens=num_tokens)

    def _require_room(self, capacity: int) -> None:
        if capacity > self.config.context_length:
            raise ContextLengthError(
                f"{capacity} tokens, but the model's context holds {self.config.context_length}: shorten the prompt, "
                "or ask for fewer tokens"
            )

    def _new_sequence(self, capacity: int) -> SequenceMemory:
        sizes = {"batch": 1, "past": capacity if self._in_place else 0}
        memory = {
            name: np.zeros(
                [dim if isinstance(dim, int) else sizes[dim] for dim in shape], np.float32
            )
            for name, shape in self._shapes.items()
        }
        return SequenceMemory(memory, np.zeros((1, capacity), np.int64), width=0)

    def _run(self, ids: NDArray[np.int64], state: SequenceMemory) -> NDArray[np.float32]:
        """Continue the sequence, and return the logits after each of its new tokens, (1, T, vocabulary)."""
        if self._in_place:
            return self._run_in_place(ids, state)
        feed = {"input_ids": ids, "attention_mask": state.advance(ids.shape[1]), **state.memory}
        logits, *presents = self._session.run(self._outputs, feed)
        state.memory = dict(zip(self._shapes, presents, strict=True))
        return np.asarray(logits, np.float32)

    def _run_in_place(self, ids: NDArray[np.int64], state: SequenceMemory) -> NDArray[np.float32]:
        # What a step of one token is bound to stays where it is; the two places of `spare` take turns.
        key = state.turn if ids.shape[1] == 1 else -1
        call = state.calls.get(key)
        if call is None:
            call = self._bind(ids, state)
            if key >= 0:
                state.calls[key] = call
        call.ids[:] = ids
        call.binding.bind_cpu_input("attention_mask", state.advance(ids.shape[1]))
        self._session.run_with_iobinding(call.binding)
        if state.spare:
            state.memory, state.spare = (
                state.memory | state.spare,
                {name: state.memory[name] for name in state.spare},
            )
            state.turn = 1 - state.turn
        return call.logits.copy()

    def _bind(self, ids: NDArray[np.int64], state: SequenceMemory) -> "_Call":
        binding = self._session.io_binding()
        logits = np.empty((*ids.shape, self.config.vocab_size), np.float32)
        ids = ids.copy()
        binding.bind_cpu_input("input_ids", ids)
        _bind_output(binding, "logits", logits)
        for name, array in state.memory.items():
            binding.bind_cpu_input(name, array)
            if "past" not in self._shapes[name]:
                array = state.spare.setdefault(name, np.empty_like(array))
            _bind_output(binding, present_name(name), array)
        return _Call(binding, ids, logits)


@dataclass(frozen=True, eq=False)
class _Call:
    """A run of the graph whose arrays, but for the mask, are where they will be each time."""

    binding: onnxruntime.IOBinding
    ids: NDArray[np.int64]
    logits: NDArray[np.float32]


def _bind_output(binding: onnxruntime.IOBinding, name: str, array: NDArray[np.float32]) -> None:
    binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def _chunks(ids: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    if not len(ids):
        raise InputError("there is no token to read: pass at least one, such as <|bos|>")
    for start in range(0, len(ids), _CHUNK):
        yield np.array([ids[start : start + _CHUNK]], np.int64)


def _open(path: Path, num_threads: int | None) -> onnxruntime.InferenceSession:
    require_file(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    for key, value in SESSION_CONFIG.items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # The exceptions of ONNX Runtime have no base class of their own.
    except Exception as error:
        raise FormatError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error}); export the model again, or "
            "pip install -U onnxruntime"
        ) from error


def _require_interface(
    path: Path, session: onnxruntime.InferenceSession, memory: Mapping[str, tuple[Dim, ...]]
) -> None:
    """Refuse a graph that is not the one of its configuration: its shapes would be allocated."""
    shapes = {"input_ids": ("batch", "tokens"), "attention_mask": ("batch", "total"), **memory}
    found = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
    if found != shapes:
        name = min(n for n in found.keys() | shapes.keys() if found.get(n) != shapes.get(n))
        raise FormatError(
            f"{path}: the input {name} has the shape {found.get(name)}, and its configuration asks for "
            f"{shapes.get(name)}: export the model again"
        )
