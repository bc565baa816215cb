"""The shapes of the catalog are those that full-size headers tell, which are written here byte by byte."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nanochat.config import config_to_dict
from nanochat.export.gguf.header import header_config
from nanochat.zoo.catalog import CATALOG

F32, BF16, Q1_0, Q2_0, PQ2_0, PTQ1_0 = 0, 30, 41, 42, 142, 143
# Columns and bytes of a block.
BLOCKS = {F32: (1, 4), BF16: (1, 2), Q1_0: (128, 18), Q2_0: (128, 34), PQ2_0: (128, 34)}
BLOCKS |= {PTQ1_0: (128, 28)}
Tensor = tuple[str, tuple[int, ...], int]


def qwen3(
    width: int, layers: int, heads: int, hidden: int, *, tied: bool, kind: int
) -> list[Tensor]:
    size = 128
    found: list[Tensor] = [
        ("token_embd.weight", (151_669, width), kind),
        ("output_norm.weight", (width,), F32),
    ]
    if not tied:
        found.append(("output.weight", (151_669, width), kind))
    for number in range(layers):
        shapes: dict[str, tuple[tuple[int, ...], int]] = {
            "attn_norm": ((width,), F32),
            "attn_q": ((heads * size, width), kind),
            "attn_k": ((8 * size, width), kind),
            "attn_v": ((8 * size, width), kind),
            "attn_q_norm": ((size,), F32),
            "attn_k_norm": ((size,), F32),
            "attn_output": ((width, heads * size), kind),
            "ffn_norm": ((width,), F32),
            "ffn_gate": ((hidden, width), kind),
            "ffn_up": ((hidden, width), kind),
            "ffn_down": ((width, hidden), kind),
        }
        found += [(f"blk.{number}.{n}.weight", shape, k) for n, (shape, k) in shapes.items()]
    return found


def qwen35(gates: int, kind: int) -> list[Tensor]:
    width, hidden, vocabulary = 5120, 17_408, 248_320
    found: list[Tensor] = [
        ("token_embd.weight", (vocabulary, width), kind),
        ("output_norm.weight", (width,), F32),
        ("output.weight", (vocabulary, width), kind),
    ]
    for number in range(64):
        shapes: dict[str, tuple[tuple[int, ...], int]] = {
            "attn_norm.weight": ((width,), F32),
            "post_attention_norm.weight": ((width,), F32),
            "ffn_gate.weight": ((hidden, width), kind),
            "ffn_up.weight": ((hidden, width), kind),
            "ffn_down.weight": ((width, hidden), kind),
        }
        if number % 4 == 3:
            shapes |= {
                "attn_q.weight": ((2 * 24 * 256, width), kind),
                "attn_k.weight": ((4 * 256, width), kind),
                "attn_v.weight": ((4 * 256, width), kind),
                "attn_q_norm.weight": ((256,), F32),
                "attn_k_norm.weight": ((256,), F32),
                "attn_output.weight": ((width, 24 * 256), kind),
            }
        else:
            shapes |= {
                "attn_qkv.weight": ((16 * 128 * 2 + 48 * 128, width), kind),
                "attn_gate.weight": ((48 * 128, width), kind),
                "ssm_alpha.weight": ((48, width), gates),
                "ssm_beta.weight": ((48, width), gates),
                "ssm_conv1d.weight": ((16 * 128 * 2 + 48 * 128, 4), F32),
                "ssm_a": ((48,), F32),
                "ssm_dt.bias": ((48,), F32),
                "ssm_norm.weight": ((128,), F32),
                "ssm_out.weight": ((width, 48 * 128), kind),
            }
        found += [(f"blk.{number}.{n}", shape, k) for n, (shape, k) in shapes.items()]
    return found


def keys_of_qwen3(
    width: int, layers: int, heads: int, hidden: int, context: int
) -> dict[str, object]:
    keys: dict[str, object] = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": 8,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": context // 4,
    }
    return {"general.architecture": "qwen3"} | {f"qwen3.{k}": v for k, v in keys.items()}


KEYS_OF_QWEN35 = {"general.architecture": "qwen35"} | {
    f"qwen35.{key}": value
    for key, value in {
        "block_count": 64,
        "context_length": 262_144,
        "embedding_length": 5120,
        "feed_forward_length": 17_408,
        "attention.head_count": 24,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "rope.dimension_count": 64,
        "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
        "full_attention_interval": 4,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 128,
        "ssm.group_count": 16,
        "ssm.time_step_rank": 48,
        "ssm.inner_size": 6144,
    }.items()
}


def rotations(tensors: list[Tensor]) -> dict[str, object]:
    names = [n for n, _, kind in tensors if kind in (PQ2_0, PTQ1_0) and n != "token_embd.weight"]
    assert len(names) == 401
    keys = {
        "version": 1,
        "block_size": 1024,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": np.array([5120, 6144, 17_408], np.int32),
        "sign_values": np.where(np.arange(28_672) % 3 == 0, -1, 1).astype(np.int32),
        "weight_names": names,
        "inverse_weight_names": ["token_embd.weight"],
        "gdn_v_grouped": True,
    }
    return {f"prism.hadamard.{key}": value for key, value in keys.items()}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def packed(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case np.ndarray():
            return struct.pack("<IIQ", 9, 5, value.size) + value.tobytes()
        case [*names]:
            return struct.pack("<IIQ", 9, 8, len(names)) + b"".join(map(text, map(str, names)))
    raise AssertionError(value)


def write(path: Path, keys: dict[str, object], tensors: list[Tensor]) -> Path:
    """A file with holes in place of its tensors."""

    def described() -> Iterator[bytes]:
        position = 0
        for name, shape, kind in tensors:
            columns, size = BLOCKS[kind]
            sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
            yield text(name) + sizes + struct.pack("<IQ", kind, position)
            position += -(-int(np.prod(shape)) // columns * size // 32) * 32
        yield position.to_bytes(8, "little")

    *infos, total = described()
    values = [text(key) + packed(value) for key, value in keys.items()]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    data = head + b"".join(values) + b"".join(infos)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(-(-len(data) // 32) * 32 + int.from_bytes(total, "little"))
    return path


SMALL = {
    "1.7b": (2048, 28, 16, 6144, 32_768),
    "4b": (2560, 36, 32, 9728, 32_768),
    "8b": (4096, 36, 32, 12_288, 65_536),
}


def require_same(name: str, path: Path) -> None:
    config = CATALOG[name].config
    assert config is not None
    told, expected = config_to_dict(header_config(path)), config_to_dict(config)
    # float32 in the file.
    assert told.pop("norm_eps") == pytest.approx(expected.pop("norm_eps"))
    assert told == expected


@pytest.mark.parametrize("kind", [PQ2_0, Q2_0, Q1_0], ids=["PQ2_0", "type 42", "Q1_0"])
@pytest.mark.parametrize("size", SMALL)
def test_the_small_bonsai_are_what_their_headers_tell(tmp_path: Path, size: str, kind: int) -> None:
    *shape, context = SMALL[size]
    width, layers, heads, hidden = shape
    tensors = qwen3(width, layers, heads, hidden, tied=size != "8b", kind=kind)

    path = write(tmp_path / "x.gguf", keys_of_qwen3(width, layers, heads, hidden, context), tensors)

    require_same(f"{'bonsai' if kind == Q1_0 else 'ternary-bonsai'}-{size}", path)


def test_the_27b_model_is_what_its_header_tells(tmp_path: Path) -> None:
    tensors = qwen35(PQ2_0, PQ2_0)
    assert sum(kind == PQ2_0 for _, _, kind in tensors) == 498
    assert len(tensors) == 851

    path = write(tmp_path / "x.gguf", KEYS_OF_QWEN35, tensors)

    require_same("ternary-bonsai-27b", path)
    assert path.stat().st_size == pytest.approx(7.15e9, rel=2e-3)


@pytest.mark.parametrize(("kind", "gigabytes"), [(PQ2_0, 7.21), (PTQ1_0, 5.9)])
def test_the_rotated_27b_model_is_what_its_header_tells(
    tmp_path: Path, kind: int, gigabytes: float
) -> None:
    tensors = qwen35(BF16, kind)
    assert [sum(k == one for _, _, k in tensors) for one in (kind, BF16, F32)] == [402, 96, 353]

    path = write(tmp_path / "x.gguf", KEYS_OF_QWEN35 | rotations(tensors), tensors)

    require_same("ternary-bonsai-2-27b", path)
    assert path.stat().st_size == pytest.approx(gigabytes * 1e9, rel=1e-2)
