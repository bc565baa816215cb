"""This file holds the unmodified llama.cpp at work on a GGUF file: what its users will see.

Its library is fetched once from a registry; see `nanochat.export.gguf.llama_cpp_library`.
"""

import ctypes
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.host import has_amx
from nanochat.errors import BackendError, ContextLengthError, FormatError, InputError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.llama_cpp_library import last_error, library, processor_library
from nanochat.proof.parity import Rounding
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["LlamaCpp"]

# Tokens of one pass, the library's default.
_BATCH = 512


class LlamaCpp:
    """A GGUF file with the sequence that it has seen; keys and values are float16, all options the library's defaults.

    It keeps a pool of threads, as llama.cpp's own programs do, by default as many as the process may use; without one,
    each token would start threads anew. It is a `nanochat.proof.parity.Artefact`, whose `rounding` depends on the types
    in the file.

    Parameters
    ----------
    path : Path
        A file of an architecture that llama.cpp has, such as `nanochat.export.gguf.write.write_gguf` writes for it.
    context : int
        The most tokens of the sequence.
    rows : int
        Sequences that `decode_rows` continues at once.
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, context: int, rows: int = 1
    ) -> None:
        self._library = library()
        self.runtime = f"llama.cpp {self._library.llama_version().decode()}"
        self._limit, self._length, self._rows = context, 0, rows
        # What frees what has been made, in the order in which it was.
        frees: list[Callable[[], None]] = []
        self._close = weakref.finalize(self, _run_all, frees)
        decode: Callable[..., int] = self._library.llama_decode
        self._decode = decode
        if has_amx():
            # It shapes the tiles of AMX once for a thread. Where another library, such as torch, gives them back or
            # shapes them anew, its next product is an illegal instruction, which ends the process.
            thread = ThreadPoolExecutor(1)
            frees.append(thread.shutdown)
            self._decode = lambda *arguments: thread.submit(decode, *arguments).result()
        try:
            self._open(path, threads or len(os.sched_getaffinity(0)), frees)
            # Inputs of matrices in blocks are rounded to 8 bits in blocks of 256 or 32, where the model has others;
            # inputs of float16 matrices, and keys and values, to float16.
            kinds = {tensor.kind for tensor in read_gguf(path).tensors.values()}
            rounds = any(kind.columns > 1 for kind in kinds)
            self.rounding: Rounding = "other" if rounds else "none"
            self.tolerance = TOLERANCES["llama.cpp" if rounds else "llama.cpp, float16"].limit
        except BaseException:
            self.close()
            raise

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after every token of a new sequence, (T, vocabulary)."""
        self.reset()
        self._check(ids)
        parts = [
            self._run(ids[begin : begin + _BATCH], every=True)
            for begin in range(0, len(ids), _BATCH)
        ]
        return np.concatenate(parts)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """The most probable tokens after a new sequence, one after the other; special tokens do not end it."""
        self.reset()
        logits = self.prefill(ids)
        tokens: list[int] = []
        for _ in range(num_tokens):
            tokens.append(int(logits.argmax()))
            if len(tokens) < num_tokens:
                logits = self.decode(tokens[-1])
        return tokens

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after the last of some tokens that continue the sequence, float32, (vocabulary,).

        They run up to 512 at a time.
        """
        self._check(ids)
        for begin in range(0, len(ids), _BATCH):
            logits = self._run(ids[begin : begin + _BATCH], every=False)
        return logits.reshape(-1)

    def decode(self, token: int) -> NDArray[np.float32]:
        """As `prefill`, with one token."""
        return self.prefill((token,))

    def decode_rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Continue each of the rows, or the first ones, by a token; the logits after it, (rows, vocabulary)."""
        if self._length == self._limit:
            raise ContextLengthError(
                f"rows of {self._length} tokens, which is the context: open the model with a larger one, or call reset"
            )
        count = len(tokens)
        # Kept while it runs.
        ids = (ctypes.c_int32 * count)(*tokens)
        numbers = [(ctypes.c_int32 * 1)(row) for row in range(count)]
        pointers = [ctypes.cast(number, ctypes.POINTER(ctypes.c_int32)) for number in numbers]
        batch = self._library.llama_batch_get_one(ids, count)
        batch.pos = (ctypes.c_int32 * count)(*[self._length] * count)
        batch.n_seq_id = (ctypes.c_int32 * count)(*[1] * count)
        batch.seq_id = (ctypes.POINTER(ctypes.c_int32) * count)(*pointers)
        batch.logits = (ctypes.c_int8 * count)(*[1] * count)
        self._decode_batch(batch)
        self._length += 1
        return self._logits(range(count))

    def reset(self) -> None:
        """Forget the sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)
        self._length = 0

    def pause(self) -> None:
        """Let the threads sleep until the next token; they would spin for 0.15 s, and what runs next be slower."""
        processor_library().ggml_threadpool_pause(self._pool)

    def close(self) -> None:
        """Free the model, after which nothing else may be called."""
        self._close()

    def _open(self, path: Path, threads: int, frees: list[Callable[[], None]]) -> None:
        functions, processor = self._library, processor_library()
        model = functions.llama_model_load_from_file(
            str(path).encode(), functions.llama_model_default_params()
        )
        if model is None:
            raise FormatError(
                f"{path}: llama.cpp cannot load it ({last_error()}): export the model for its runtime"
            )
        frees.append(lambda: functions.llama_model_free(model))
        self._vocabulary = functions.llama_model_get_vocab(model)
        self._num_tokens = functions.llama_vocab_n_tokens(self._vocabulary)
        self._model = model
        pool_parameters = functions.ggml_threadpool_params_default(threads)
        self._pool = pool = processor.ggml_threadpool_new(ctypes.byref(pool_parameters))
        frees.append(lambda: processor.ggml_threadpool_free(pool))
        parameters = functions.llama_context_default_params()
        parameters.n_ctx = self._limit * self._rows
        parameters.n_seq_max = self._rows
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = context = functions.llama_init_from_model(model, parameters)
        if context is None:
            raise BackendError(
                f"{path}: llama.cpp has no room for {self._limit} tokens ({last_error()}): pass a smaller context"
            )
        frees.append(lambda: functions.llama_free(context))
        functions.llama_attach_threadpool(context, pool, None)

    def _check(self, ids: Sequence[int]) -> None:
        if self._length + len(ids) > self._limit:
            raise ContextLengthError(
                f"{self._length} tokens and {len(ids)} more are over the context of {self._limit}: "
                "open the model with a larger one, or call reset"
            )
        if not ids or not 0 <= min(ids) <= max(ids) < self._num_tokens:
            raise InputError(f"token numbers must be there and lie in 0 to {self._num_tokens - 1}")

    def _run(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        """Continue the sequence, and return the logits after every token or the last one, (T or 1, vocabulary)."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        batch = self._library.llama_batch_get_one(tokens, len(ids))
        wanted = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        if every:
            batch.logits = wanted
        self._decode_batch(batch)
        self._length += len(ids)
        return self._logits(range(len(ids)) if every else (-1,))

    def _decode_batch(self, batch: ctypes.Structure) -> None:
        code = self._decode(self._context, batch)
        if code:
            raise BackendError(
                f"llama.cpp cannot go on (code {code}, {last_error()}): call reset or open the model again"
            )

    def _logits(self, rows: Iterable[int]) -> NDArray[np.float32]:
        """The logits after some tokens of the last batch."""
        pointers = [self._library.llama_get_logits_ith(self._context, row) for row in rows]
        return np.stack(
            [np.ctypeslib.as_array(pointer, (self._num_tokens,)) for pointer in pointers]
        )


def _run_all(frees: list[Callable[[], None]]) -> None:
    # The context goes before its threads, and the model last.
    while frees:
        frees.pop()()
