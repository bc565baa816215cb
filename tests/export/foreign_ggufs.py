"""This file holds random GGUF files as other programs write them, with the gguf library and a packer of its own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import tokenizers
from numpy.typing import NDArray

from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.vocabulary import read_vocabulary
from nanochat.text.codec import TextCodec
from tests.core.foreign_tokenizers import llama_3, sentencepiece

_TOKEN = gguf.TokenType
Q2_0 = 42
WIDTH, HIDDEN, HEADS, KEY_HEADS, HEAD_DIM, LAYERS, EXPERTS = 256, 512, 4, 2, 64, 2, 4
ROWS = 320


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a file is like.

    `scaled`: linears have a factor in a tensor of its own, and 1 as their blocks' scales. `row`: their scales are equal
    in a row.
    """

    architecture: str
    kind: str = "TQ2_0"
    table: str = "F16"
    tied: bool = True
    scaled: bool = False
    hidden: int = HIDDEN


Tensor = tuple[tuple[int, ...], int, NDArray[np.uint8]]


def tensors(case: Case) -> dict[str, Tensor]:
    """Shape, number of the type and bytes of every tensor, by name."""
    generator = np.random.default_rng(1)
    found: dict[str, Tensor] = {}

    def add(name: str, values: NDArray[np.float32], kind: str) -> None:
        number = (
            Q2_0 if kind == "Q2_0" else int(gguf.GGMLQuantizationType[kind.removesuffix(" rows")])
        )
        found[name] = (values.shape, number, pack(values, kind))

    def linear(name: str, *shape: int) -> None:
        count = shape[0] if len(shape) == 3 else 1
        codes = generator.integers(-1, 2, shape).astype(np.float32)
        block = 128 if case.kind == "Q2_0" else 256
        # Narrow matrices are for files with factors alone.
        block = block if shape[-1] % block == 0 else 64
        magnitudes = generator.uniform(0.5, 1.5, (*shape[:-1], shape[-1] // block))
        scales = (magnitudes / np.sqrt(shape[-1])).astype(np.float16).astype(np.float32)
        if case.scaled:
            scales[:] = 1
            factor = generator.uniform(0.5, 1.5, count) / np.sqrt(shape[-1])
            add(f"{name}.scale", factor.astype(np.float32), "F32")
        # A block of zeros, whose scale the library makes 0.
        codes[..., 3, :block] = 0
        add(f"{name}.weight", codes * np.repeat(scales, block, axis=-1), case.kind)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", generator.uniform(0.5, 1.5, size).astype(np.float32), "F32")

    add("token_embd.weight", normal(generator, ROWS, WIDTH), case.table)
    if not case.tied:
        add("output.weight", normal(generator, ROWS, WIDTH), case.table)
    norm("output_norm", WIDTH)
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        norm(f"{at}.attn_norm", WIDTH)
        norm(f"{at}.ffn_norm", WIDTH)
        linear(f"{at}.attn_q", HEADS * HEAD_DIM, WIDTH)
        linear(f"{at}.attn_k", KEY_HEADS * HEAD_DIM, WIDTH)
        linear(f"{at}.attn_v", KEY_HEADS * HEAD_DIM, WIDTH)
        linear(f"{at}.attn_output", WIDTH, HEADS * HEAD_DIM)
        if case.architecture.startswith("qwen3"):
            norm(f"{at}.attn_q_norm", HEAD_DIM)
            norm(f"{at}.attn_k_norm", HEAD_DIM)
        if case.architecture == "bitnet":
            norm(f"{at}.attn_sub_norm", HEADS * HEAD_DIM)
            norm(f"{at}.ffn_sub_norm", case.hidden)
        if case.architecture == "qwen3moe":
            add(f"{at}.ffn_gate_inp.weight", normal(generator, EXPERTS, WIDTH), "F32")
            linear(f"{at}.ffn_gate_exps", EXPERTS, case.hidden, WIDTH)
            linear(f"{at}.ffn_up_exps", EXPERTS, case.hidden, WIDTH)
            linear(f"{at}.ffn_down_exps", EXPERTS, WIDTH, case.hidden)
        else:
            linear(f"{at}.ffn_gate", case.hidden, WIDTH)
            linear(f"{at}.ffn_up", case.hidden, WIDTH)
            linear(f"{at}.ffn_down", WIDTH, case.hidden)
    return found


def normal(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """A table or router; large enough for the stream not to be what the linears' rounding makes of it."""
    return generator.standard_normal((rows, columns), np.float32)


def pack(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Bytes of numbers that a type holds."""
    if kind == "Q6_K":
        # The library cannot write it: any bytes are some numbers, small ones with a small scale.
        count = values.size // 256
        data = np.random.default_rng(2).integers(0, 256, (count, 210), np.uint8)
        data[:, 208:] = np.full((count, 1), 2e-4, np.float16).view(np.uint8)
        return data.reshape(-1)
    if kind == "Q2_0":
        blocks = values.reshape(-1, 64)
        scales = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float16)
        digits = (np.sign(blocks) + 1).astype(np.uint8).reshape(-1, 16, 4)
        codes = digits[:, :, 0] | digits[:, :, 1] << 2 | digits[:, :, 2] << 4 | digits[:, :, 3] << 6
        return np.concatenate([scales.view(np.uint8), codes], axis=1).reshape(-1)
    if kind == "Q8_0 rows":
        scales = (np.abs(values).max(axis=1, keepdims=True) / 127).astype(np.float16)
        codes = np.rint(values / scales.astype(np.float32)).astype(np.int8)
        blocks = codes.view(np.uint8).reshape(len(values), -1, 32)
        repeated = np.repeat(scales.view(np.uint8)[:, None], blocks.shape[1], axis=1)
        return np.concatenate([repeated, blocks], axis=2).reshape(-1)
    packed = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(packed).view(np.uint8).reshape(-1)


def metadata(case: Case) -> dict[str, Any]:
    """Hyperparameters; what llama.cpp has a default for is left out."""
    name = case.architecture
    keys: dict[str, Any] = {
        f"{name}.context_length": 128,
        f"{name}.embedding_length": WIDTH,
        f"{name}.block_count": LAYERS,
        f"{name}.feed_forward_length": case.hidden,
        f"{name}.attention.head_count": HEADS,
        f"{name}.attention.head_count_kv": KEY_HEADS,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    if name == "qwen3moe":
        keys |= {
            f"{name}.expert_count": EXPERTS,
            f"{name}.expert_used_count": 2,
            f"{name}.expert_feed_forward_length": case.hidden,
        }
    return keys


def vocabulary(library: tokenizers.Tokenizer | None = None) -> dict[str, Any]:
    """Byte-level BPE as its converter writes it, filled up with unused tokens."""
    library = library or llama_3()
    count = library.get_vocab_size()
    pieces = [library.id_to_token(token) for token in range(count)]
    special = {
        token for token, added in library.get_added_tokens_decoder().items() if added.special
    }
    kinds = [_TOKEN.CONTROL if token in special else _TOKEN.NORMAL for token in range(count)]
    unused = range(count, ROWS)
    merges = json.loads(library.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": pieces + [f"[PAD{token}]" for token in unused],
        "tokenizer.ggml.token_type": [*map(int, kinds), *(int(_TOKEN.UNUSED) for _ in unused)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": library.token_to_id("<|begin_of_text|>"),
        "tokenizer.ggml.eos_token_id": library.token_to_id("<|end_of_text|>"),
        "tokenizer.ggml.eot_token_id": library.token_to_id("<|eot_id|>"),
    }


def sentencepiece_vocabulary() -> dict[str, Any]:
    """BPE of SentencePiece, in place of `vocabulary`."""
    library = sentencepiece()
    pieces = [library.id_to_token(token) for token in range(library.get_vocab_size())][:ROWS]
    kinds = [2, 3, 3, *[6] * 256]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": kinds + [1] * (len(pieces) - len(kinds)),
        "tokenizer.ggml.scores": [float(-token) for token in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.eos_token_id": None,
        "tokenizer.ggml.eot_token_id": None,
    }


def vocabulary_again(folder: Path, changes: dict[str, Any]) -> TextCodec:
    """The tokenizer of a file with these keys, as this package reads it."""
    path = write(folder / "x.gguf", Case(architecture="qwen3"), changes=changes)
    return read_vocabulary(read_gguf(path).metadata, rows=ROWS)


def write(
    path: Path,
    case: Case,
    *,
    changes: dict[str, Any] | None = None,
    changed_tensors: Mapping[str, Tensor] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """Write a file; `changes` of metadata and tensors come last."""
    keys = {**metadata(case), **vocabulary(), **(changes or {})}
    kept = {**tensors(case), **(changed_tensors or {})}
    return write_file(
        path,
        case.architecture,
        {key: value for key, value in keys.items() if key not in without},
        {name: tensor for name, tensor in kept.items() if name not in without},
    )


def write_file(
    path: Path, architecture: str, keys: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write a file of these keys, but for those that are None, and tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        if value is not None:
            _add(writer, key, value)
    for name, (shape, number, data) in tensors.items():
        # The library's own shapes for bytes do not know every type; other arrays' it writes as they are.
        kind = cast(gguf.GGMLQuantizationType, number)
        writer.add_tensor_info(name, shape, np.dtype(np.int8), data.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, data in tensors.values():
        writer.write_tensor_data(data)
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
