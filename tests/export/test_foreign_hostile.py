"""Whatever the files of other people's models say, what comes out is a model or one of our errors."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NanochatError
from nanochat.export.folders.configuration import MODEL_TYPES, read_configuration
from nanochat.export.folders.quantization import read_quantization
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.rotary import rotation
from nanochat.text.library import load_tokenizer
from tests.core.foreign_tokenizers import llama_3, sentencepiece, unigram
from tests.export.foreign_ggufs import Case, write

NUMBERS = st.integers(-2, 5) | st.integers() | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "layer_types": ["full_attention"],
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 1.0,
    "text_config": None,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "full_attention_interval": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "num_experts": 0,
}
ROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "attention_factor": 1.0,
    "beta_fast": 32,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0] * 8,
    "partial_rotary_factor": 1.0,
    "truncate": True,
}
QUANTIZATION = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
    "use_rms_norm": False,
    "modules_to_not_convert": ["lm_head"],
}


@given(
    st.sampled_from(MODEL_TYPES),
    st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, max_size=3),
    st.dictionaries(st.sampled_from(sorted(QUANTIZATION)), VALUES, max_size=2) | VALUES,
)
def test_any_configuration_is_read_or_refused(
    model_type: str, changes: dict[str, Any], quantization: Any
) -> None:
    if isinstance(quantization, dict):
        quantization = {**QUANTIZATION, **quantization}

    with contextlib.suppress(NanochatError):
        ModelConfig(**read_configuration({"model_type": model_type, **FIELDS, **changes}))
    with contextlib.suppress(NanochatError):
        read_quantization(quantization)


@given(
    st.sampled_from(["default", "linear", "llama3", "yarn", "longrope", "mrope"]),
    st.dictionaries(st.sampled_from(sorted(ROPE)), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(sorted(ROPE)), VALUES, max_size=1),
)
def test_any_rotation_is_read_or_refused(
    kind: str, changes: dict[str, Any], others: dict[str, Any]
) -> None:
    rope = {**ROPE, "rope_type": kind, **changes}
    fields = {"model_type": "llama", **FIELDS, "rope_parameters": rope, "rope_scaling": others}

    with contextlib.suppress(NanochatError):
        rotation(ModelConfig(**read_configuration(fields)))


PATHS: list[tuple[Any, ...]] = [
    ("added_tokens",),
    ("added_tokens", 0),
    ("added_tokens", 0, "id"),
    ("added_tokens", 0, "content"),
    ("added_tokens", 0, "special"),
    ("model",),
    ("model", "type"),
    ("model", "vocab"),
    ("model", "merges"),
    ("model", "unk_token"),
    ("model", "unk_id"),
    ("decoder",),
    ("normalizer",),
    ("pre_tokenizer",),
    ("post_processor",),
    ("padding",),
    ("truncation",),
]
LIBRARIES = {"llama 3": llama_3, "sentencepiece": sentencepiece, "unigram": unigram}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(LIBRARIES)),
    st.sampled_from(PATHS),
    VALUES,
    st.dictionaries(
        st.sampled_from(["bos_token", "eos_token", "add_bos_token", "chat_template"]), VALUES
    ),
    st.dictionaries(st.sampled_from(["bos_token_id", "eos_token_id", "pad_token_id"]), VALUES),
)
def test_any_tokenizer_is_read_or_refused(
    tmp_path: Path,
    name: str,
    path: tuple[Any, ...],
    value: Any,
    tokenizer_settings: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    data = json.loads(LIBRARIES[name]().to_str())
    place = data
    for key in path[:-1]:
        place = place[key]
    if isinstance(place, dict) or len(place) > path[-1]:
        place[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))

    with contextlib.suppress(NanochatError):
        tokenizer = load_tokenizer(tmp_path)
        tokens = tokenizer.encode("to be 🙂 </s>")
        tokenizer.decode(tokens)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "x.gguf", Case(architecture="llama"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
# The metadata and descriptions of tensors are the first 12 kB.
@given(st.integers(0, 12_000), st.binary(min_size=1, max_size=8))
def test_any_damaged_gguf_file_is_read_or_refused(
    tmp_path: Path, whole: Path, position: int, change: bytes
) -> None:
    path = tmp_path / "x.gguf"
    content = whole.read_bytes()
    path.write_bytes(content[:position] + change + content[position + len(change) :])

    with contextlib.suppress(NanochatError):
        load_foreign_gguf(path, read_gguf(path))


def test_a_long_text_of_other_bytes_is_refused_in_little_memory(tmp_path: Path) -> None:
    size, path = 2**22, tmp_path / "x.gguf"
    path.write_bytes(struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, size) + b"\xff" * size)

    tracemalloc.start()
    with pytest.raises(FormatError, match="is not UTF-8"):
        read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * size


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("qwen3", {"block_count": 1000}, "num_layers is 1000, and the tensors have 24 at most"),
        (
            "llama",
            {
                "attention.head_count": 1024,
                "attention.head_count_kv": 1024,
                "attention.key_length": 1024,
                "attention.value_length": 1024,
            },
            r"num_heads \* head_dim is 1048576, and the tensors have 512 at most",
        ),
        ("qwen3moe", {"expert_count": 1000}, "num_experts is 1000, and the tensors have 4 at most"),
    ],
    ids=["layers", "heads", "experts"],
)
def test_sizes_that_no_tensor_has_are_refused_in_little_memory(
    architecture: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    keys = {f"{architecture}.{key}": value for key, value in changes.items()}
    path = write(tmp_path / "x.gguf", Case(architecture=architecture), changes=keys)
    file = read_gguf(path)

    tracemalloc.start()
    with pytest.raises(ConfigError, match=message):
        load_foreign_gguf(path, file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**20
