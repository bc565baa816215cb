"""This file holds llama.cpp at work on one sequence, as a peer of whole models."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.peers.llama_cpp_library import last_error, library, processor_library
from nanochat.errors import BackendError, ContextLengthError, FormatError, InputError

__all__ = ["LlamaCpp"]

# Tokens of one pass, the library's default.
_BATCH = 512


class LlamaCpp:
    """A GGUF file with the sequence that it has seen; keys and values are float16, all options the library's defaults.

    It keeps a pool of threads, as llama.cpp's own programs do; without one, each token would start threads anew.

    Parameters
    ----------
    path : Path
        A file that stock llama.cpp can run, such as those of `bench.peers.llama_cpp_file`.
    threads : int
    context : int
        The most tokens of the sequence.

    Raises
    ------
    BackendError
        If there is no library for this machine; see `bench.peers.llama_cpp_install`.
    FormatError
        If the library cannot load the file.
    """

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        self._library = library()
        self._model = self._context = self._pool = None
        self._length, self._limit, self._num_tokens = 0, context, 0
        try:
            self._open(path, threads)
        except BaseException:
            self.close()
            raise

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after the last of some tokens that continue the sequence, float32, (vocabulary,).

        They run up to 512 at a time.

        Raises
        ------
        ContextLengthError
            If the sequence would become longer than `context`.
        InputError
            If there is no token, or one is not of the vocabulary.
        """
        if self._length + len(ids) > self._limit:
            raise ContextLengthError(
                f"{self._length} tokens and {len(ids)} more are over the context of {self._limit}: "
                "open the model with a larger one, or call reset"
            )
        if not ids or not 0 <= min(ids) <= max(ids) < self._num_tokens:
            raise InputError(f"token numbers must be there and lie in 0 to {self._num_tokens - 1}")
        for begin in range(0, len(ids), _BATCH):
            self._run(ids[begin : begin + _BATCH])
        logits = self._library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._num_tokens,)).copy()

    def decode(self, token: int) -> NDArray[np.float32]:
        """As `prefill`, with one token."""
        return self.prefill((token,))

    def reset(self) -> None:
        """Forget the sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), False)
        self._length = 0

    def pause(self) -> None:
        """Let the threads sleep until the next token; they would spin for 0.15 s, and what runs next be slower."""
        processor_library().ggml_threadpool_pause(self._pool)

    def close(self) -> None:
        """Free the model, after which nothing else may be called."""
        if self._context is not None:
            self._library.llama_free(self._context)
        if self._pool is not None:
            processor_library().ggml_threadpool_free(self._pool)
        if self._model is not None:
            self._library.llama_model_free(self._model)
        self._model = self._context = self._pool = None

    def _open(self, path: Path, threads: int) -> None:
        self._model = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if self._model is None:
            raise FormatError(
                f"{path}: llama.cpp cannot load it ({last_error()}): write it with bench.peers.llama_cpp_file"
            )
        vocabulary = self._library.llama_model_get_vocab(self._model)
        self._num_tokens = self._library.llama_vocab_n_tokens(vocabulary)
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = self._limit
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = self._library.llama_init_from_model(self._model, parameters)
        if self._context is None:
            raise BackendError(
                f"{path}: llama.cpp has no room for {self._limit} tokens ({last_error()}): pass a smaller context"
            )
        pool_parameters = self._library.ggml_threadpool_params_default(threads)
        self._pool = processor_library().ggml_threadpool_new(ctypes.byref(pool_parameters))
        self._library.llama_attach_threadpool(self._context, self._pool, None)

    def _run(self, ids: Sequence[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        batch = self._library.llama_batch_get_one(tokens, len(ids))
        code = self._library.llama_decode(self._context, batch)
        if code:
            raise BackendError(
                f"llama.cpp cannot go on (code {code}, {last_error()}): call reset or open the model again"
            )
        self._length += len(ids)
