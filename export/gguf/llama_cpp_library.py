"""This file holds llama.cpp's functions and structures for ctypes, and where its library is.

That is a folder that the user names, or a package that is fetched once from a registry.

Structures pass by value, with defaults that the library fills in: their layout must be that of its version.

References
----------
.. [1] github.com/ggml-org/llama.cpp, include/llama.h, release v0.5.0; the same in commit 0c1e570.
"""

import ctypes
import os
import platform
import sys
from collections import deque
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32
from ctypes import c_void_p as pointer
from functools import cache
from pathlib import Path

from nanochat.errors import BackendError
from nanochat.export.npm import Package, package_folder

__all__ = ["last_error", "library", "library_folder", "processor_library"]

# The one release whose structures are declared here.
_RELEASE = "0.5."
_FIX = "unset NANOCHAT_LLAMA_CPP, or name a folder with that release in it"
# Level of errors in its log.
_ERROR = 4
# A prebuilt v0.5.0 for glibc 2.34 and newer, with one file for each generation of processors: 11 MB.
_PACKAGE = Package(
    name="@node-llama-cpp/linux-x64",
    version="3.22.1",
    sha512="5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg==",
    files=("bins/linux-x64/*.so",),
)


class _ModelParameters(ctypes.Structure):
    _fields_ = (
        ("devices", pointer),
        ("tensor_buft_overrides", pointer),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", pointer),
        ("progress_callback", pointer),
        ("progress_callback_user_data", pointer),
        ("kv_overrides", pointer),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class _ContextParameters(ctypes.Structure):
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", pointer),
        ("cb_eval_user_data", pointer),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", pointer),
        ("abort_callback_data", pointer),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", pointer),
        ("n_samplers", c_size_t),
        ("ctx_other", pointer),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class _ThreadpoolParameters(ctypes.Structure):
    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "ggml_backend_load_all_from_path": (None, (c_char_p,)),
    "ggml_threadpool_params_default": (_ThreadpoolParameters, (c_int,)),
    "llama_attach_threadpool": (None, (pointer, pointer, pointer)),
    "llama_backend_init": (None, ()),
    "llama_batch_get_one": (_Batch, (POINTER(c_int32), c_int32)),
    "llama_context_default_params": (_ContextParameters, ()),
    "llama_decode": (c_int32, (pointer, _Batch)),
    "llama_free": (None, (pointer,)),
    "llama_get_logits_ith": (POINTER(c_float), (pointer, c_int32)),
    "llama_get_memory": (pointer, (pointer,)),
    "llama_init_from_model": (pointer, (pointer, _ContextParameters)),
    "llama_log_set": (None, (pointer, pointer)),
    "llama_memory_clear": (None, (pointer, c_bool)),
    "llama_model_chat_template": (c_char_p, (pointer, c_char_p)),
    "llama_model_default_params": (_ModelParameters, ()),
    "llama_model_free": (None, (pointer,)),
    "llama_model_get_vocab": (pointer, (pointer,)),
    "llama_model_load_from_file": (pointer, (c_char_p, _ModelParameters)),
    "llama_tokenize": (
        c_int32,
        (pointer, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    ),
    "llama_version": (c_char_p, ()),
    "llama_vocab_bos": (c_int32, (pointer,)),
    "llama_vocab_eos": (c_int32, (pointer,)),
    "llama_vocab_eot": (c_int32, (pointer,)),
    "llama_vocab_is_eog": (c_bool, (pointer, c_int32)),
    "llama_vocab_n_tokens": (c_int32, (pointer,)),
    "llama_vocab_pad": (c_int32, (pointer,)),
}
# They are in the file of the processor's generation.
_PROCESSOR_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "ggml_threadpool_free": (None, (pointer,)),
    "ggml_threadpool_new": (pointer, (POINTER(_ThreadpoolParameters),)),
    "ggml_threadpool_pause": (None, (pointer,)),
}
_errors: deque[str] = deque(maxlen=4)


def _remember(level: int, text: bytes, data: object) -> None:
    del data
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())


_log = ctypes.CFUNCTYPE(None, c_int, c_char_p, pointer)(_remember)


@cache
def library() -> ctypes.CDLL:
    """The library, ready for use; its log is silent."""
    folder = library_folder()
    # The registry's file has its release in its name; libllama-common is another library.
    loaded = _load([*folder.glob("libllama.so"), *folder.glob("libllama.v*.so")], _FUNCTIONS)
    release = loaded.llama_version().decode()
    if not release.startswith(_RELEASE) or not _layouts_agree(loaded):
        raise BackendError(f"{folder}: llama.cpp {release}, must be {_RELEASE}x: {_FIX}")
    loaded.llama_log_set(_log, None)
    loaded.llama_backend_init()
    loaded.ggml_backend_load_all_from_path(str(folder).encode())
    return loaded


@cache
def processor_library() -> ctypes.CDLL:
    """The part of the library that was chosen for this processor, with the threads."""
    library()
    # Of all generations' files, those that do not fit are closed again.
    chosen = [path for path in library_folder().glob("libggml-cpu*.so") if _is_loaded(path)]
    return _load(chosen, _PROCESSOR_FUNCTIONS)


def last_error() -> str:
    """What the library has said of its errors since this was asked last."""
    said = " ".join(_errors)
    _errors.clear()
    return said or "no reason given"


def _load(
    paths: list[Path], functions: dict[str, tuple[type | None, tuple[type, ...]]]
) -> ctypes.CDLL:
    """Return the first of the files, with the functions declared."""
    if not paths:
        raise BackendError(
            f"{library_folder()} holds no libllama.so and libggml-cpu.so of llama.cpp {_RELEASE}x: {_FIX}"
        )
    try:
        loaded = ctypes.CDLL(str(paths[0]))
        for name, (result, arguments) in functions.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"{paths[0]}: cannot be used as llama.cpp {_RELEASE}x ({error}): {_FIX}"
        ) from error
    return loaded


def _is_loaded(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return True


def _layouts_agree(loaded: ctypes.CDLL) -> bool:
    """Whether defaults are where they are expected, near both ends of the structures."""
    model, context = loaded.llama_model_default_params(), loaded.llama_context_default_params()
    float16 = 1
    return (
        (model.n_gpu_layers, model.use_extra_bufts, model.load_mtp) == (-1, True, False)
        and (context.n_ubatch, context.flash_attn_type) == (512, -1)
        and (context.type_k, context.type_v, context.op_offload) == (float16, float16, True)
        and (context.samplers, context.n_samplers, context.ctx_other) == (None, 0, None)
    )


def library_folder() -> Path:
    """The folder that `NANOCHAT_LLAMA_CPP` names, else that of the package, fetched if it is not there."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise BackendError(
            f"llama.cpp is run on Linux x86-64 only, and this is {sys.platform} {platform.machine()}: do this there"
        )
    named = os.environ.get("NANOCHAT_LLAMA_CPP")
    if named is not None:
        return Path(named)
    return package_folder(_PACKAGE) / "bins" / "linux-x64"
