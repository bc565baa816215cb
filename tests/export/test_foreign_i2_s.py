"""GGUF files of bitnet.cpp, with matrices in I2_S, are the BitNet models that transformers has of them in folders."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import PreTrainedModel

from nanochat import backends
from nanochat.errors import NumericError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.generation.engine import Engine
from nanochat.proof.golden import tensor_digests
from tests.export.foreign_ggufs import ROWS, Tensor, vocabulary, write_file
from tests.export.foreign_models import Layout, build, logits, save
from tests.export.test_foreign_bitnet import load as load_folder

IDS = np.random.default_rng(0).integers(0, 300, 24).tolist()
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}


def i2_s(weight: NDArray[np.float32], scale: float) -> Tensor:
    """Codes of 128 columns in 32 bytes, the first quarter in the upper bits, and a scale behind all."""
    digits = (np.sign(weight) + 1).astype(np.uint8).reshape(-1, 4, 32)
    codes = digits[:, 0] << 6 | digits[:, 1] << 4 | digits[:, 2] << 2 | digits[:, 3]
    data = codes.tobytes() + np.float32(scale).tobytes() + bytes(28)
    return weight.shape, 36, np.frombuffer(data, np.uint8)


def floats(values: NDArray[np.float32]) -> Tensor:
    return values.shape, 0, np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)


def random_model(*, exact: bool = True) -> PreTrainedModel:
    return build(
        "autobitlinear",
        exact=exact,
        vocabulary=ROWS,
        hidden_size=256,
        intermediate_size=384,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model()


def tensors_of(model: Any) -> dict[str, Tensor]:
    state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    found = {
        "token_embd.weight": floats(state["model.embed_tokens.weight"]),
        "output_norm.weight": floats(state["model.norm.weight"]),
    }
    for layer in range(2):
        for theirs, ours in NAMES.items():
            key, name = f"model.layers.{layer}.{theirs}", f"blk.{layer}.{ours}.weight"
            values = state[f"{key}.weight"]
            if values.ndim == 1:
                found[name] = floats(values)
                continue
            magnitude = float(np.abs(values).max())
            found[name] = i2_s(values, magnitude * float(state[f"{key}.weight_scale"].sum()))
    return found


def write(path: Path, model: Any, **changed: Tensor) -> Path:
    keys = {
        "context_length": 128,
        "embedding_length": 256,
        "block_count": 2,
        "feed_forward_length": 384,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500_000.0,
        "rope.dimension_count": 32,
    }
    own = {f"bitnet-b1.58.{key}": value for key, value in keys.items()}
    return write_file(
        path, "bitnet-b1.58", {**own, **vocabulary()}, {**tensors_of(model), **changed}
    )


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_logits_are_those_of_transformers(
    model: Any, backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "x.gguf", model)

    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    ops = backends.get(backend)
    ours = Engine(config, ops.prepare(weights), ops).logits(IDS)

    assert (config.weight_block, config.activation_block) == ("row", "token")
    assert (config.activation, config.sub_norm) == ("relu2_glu", True)
    expected = logits(model, IDS)
    ratios = np.sqrt(((ours - expected) ** 2).mean(axis=1) / (expected**2).mean(axis=1))
    # Float32 additions in another order flip a rounding now and then, which its token and later ones show.
    assert np.median(ratios) < 1e-6
    assert ratios.max() < 2e-2
    assert "matrices in I2_S are read as bitnet.cpp writes them on x86" in caplog.text


def test_a_folder_of_the_same_model_has_equal_codes_scales_and_logits(tmp_path: Path) -> None:
    # Each matrix has a scale of its own, which is rounded to float16.
    model = random_model(exact=False)
    ops = backends.get("reference")
    path = write(tmp_path / "x.gguf", model)

    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    expected = Engine(config, ops.prepare(weights), ops).logits(IDS)

    layouts: tuple[Layout, ...] = ("autobitlinear packed", "autobitlinear")
    for layout in layouts:
        save(model, layout, tmp_path / layout)
        of_folder, others = load_folder(tmp_path / layout)
        # float32 in a GGUF file.
        assert config == replace(of_folder, norm_eps=float(np.float32(of_folder.norm_eps)))
        assert tensor_digests(others) == tensor_digests(weights), layout
        found = Engine(of_folder, ops.prepare(others), ops).logits(IDS)
        assert np.array_equal(found, expected), layout


def test_another_layout_of_i2_s_is_noise_that_is_refused(model: Any, tmp_path: Path) -> None:
    name = "blk.1.ffn_down.weight"
    shape, kind, data = tensors_of(model)[name]
    # Bytes that a machine of another kind writes have codes 3 for this one.
    noise = np.random.default_rng(0).integers(0, 256, data.size - 32).astype(np.uint8)
    changed: Tensor = shape, kind, np.concatenate([noise, data[-32:]])
    path = write(tmp_path / "x.gguf", model, **{name: changed})

    with pytest.raises(NumericError, match=r"blk.1.ffn_down.weight has a code 3 in row 0"):
        load_foreign_gguf(path, read_gguf(path))


def test_a_scale_that_is_rounded_is_said_by_its_matrix(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.gguf", model)
    file = read_gguf(path)
    name = "blk.0.ffn_up.weight"
    tail = np.frombuffer(np.float32(0.1).tobytes() + bytes(28), np.uint8)
    changed = {**file.tensors, name: replace(file.tensors[name], tail=tail)}

    load_foreign_gguf(path, replace(file, tensors=changed))

    assert caplog.text.rstrip().endswith(f"the largest relative error found is 2.4e-04, by {name}")
