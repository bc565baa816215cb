"""A model survives a round trip bit for bit, and no file, however damaged, does more than raise."""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import checkpoint
from nanochat.config import ModelConfig
from nanochat.errors import (
    ConfigError,
    FormatError,
    InputError,
    ModelNotFoundError,
    NanochatError,
    NumericError,
    SaveError,
    ShapeError,
    VersionError,
)
from nanochat.init import freeze, init
from nanochat.shapes import shapes
from nanochat.tensors import load_tensors, save_tensors
from nanochat.weights import Dense, Int8, Stored, Ternary, Weights, map_leaves, named_leaves

SMALL: dict[str, Any] = {
    "vocab_size": 37,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "ffn_width": 24,
    "weight_block": "row",
    "activation_block": "token",
}
BLOCKS = SMALL | {
    "width": 256,
    "ffn_width": 512,
    "head_dim": 128,
    "weight_block": 256,
    "activation_block": 128,
}
# More heads of values than of keys.
DELTA = {
    "layer_pattern": ("delta", "attention"),
    "delta_heads": 4,
    "delta_key_heads": 2,
    "delta_key_dim": 6,
    "delta_value_dim": 4,
}
# Wide enough for several scales in a row of a table.
WIDE = SMALL | {"width": 64}
CONFIGS = {
    "row": ModelConfig(**SMALL),
    "block 256": ModelConfig(**BLOCKS),
    "block 128": ModelConfig(**BLOCKS | {"weight_block": 128}),
    "experts": ModelConfig(
        **SMALL | {"num_experts": 3, "expert_width": 12, "shared_expert_width": 8}
    ),
    "delta": ModelConfig(
        **SMALL,
        layer_pattern=("delta", "attention"),
        delta_heads=2,
        delta_key_dim=6,
        delta_value_dim=4,
    ),
    "loop": ModelConfig(
        **SMALL | {"num_layers": 3}, loop_count=3, loop_prelude=1, exit_threshold=0.5, num_ahead=1
    ),
    "dynamic": ModelConfig(**SMALL, coefficients="dynamic", mixer="sinkhorn", num_streams=2),
    "one stream": ModelConfig(**SMALL, num_streams=1, attention_gate=True, sub_norm=True),
    "untied": ModelConfig(**SMALL, tie_embeddings=False, activation="relu2", table_format="dense"),
    "ternary table": ModelConfig(
        **WIDE | DELTA,
        table_format="ternary",
        head_format="int8_16",
        tie_embeddings=False,
        delta_gates="ternary",
    ),
    "table of blocks": ModelConfig(
        **WIDE | DELTA,
        table_format="int8_32",
        head_format="bfloat16",
        tie_embeddings=False,
        delta_gates="bfloat16",
    ),
    "rotated": ModelConfig(
        **SMALL | DELTA, rotation_block=8, table_format="float16", delta_gates="float16"
    ),
}
CONFIG = CONFIGS["row"]
PROJECTION = "layers.1.network_site.mhc.projection"

ROOT = Path(__file__).parents[2]

FULL_DISK = """
import resource, signal, sys
import numpy as np
from nanochat import checkpoint
from nanochat.errors import SaveError
from nanochat.init import freeze, init
config = checkpoint.load_config(sys.argv[1])
weights = freeze(init(config, np.random.default_rng(1)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    checkpoint.save(sys.argv[1], config, weights)
except SaveError as error:
    print(error)
"""


def make(config: ModelConfig, seed: int = 0) -> Weights[Stored]:
    return freeze(init(config, np.random.default_rng(seed)))


def arrays(weights: Weights[Stored]) -> dict[str, Any]:
    """Return what every leaf holds, in comparable form."""
    found: dict[str, Any] = {}
    for name, leaf in named_leaves(weights):
        match leaf:
            case Dense():
                found[name] = (leaf.values.dtype, leaf.values.tolist())
            case Ternary():
                found[name] = (leaf.packed.tolist(), leaf.scales.tolist(), leaf.columns)
                found[name] += (leaf.activation_block, leaf.weight_block)
            case Int8():
                found[name] = (leaf.codes.tolist(), leaf.scales.tolist(), leaf.activation_block)
                found[name] += (leaf.scales.dtype,)
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "model", CONFIG, make(CONFIG))
    return tmp_path / "model"


def rewrite(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors of a model, and write them with an ordinary writer."""
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def rewrite_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_header(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_model_is_read_as_it_was_written(config: ModelConfig, tmp_path: Path) -> None:
    weights = make(config)

    checkpoint.save(tmp_path, config, weights)
    loaded_config, loaded = checkpoint.load(tmp_path)

    assert loaded_config == config
    assert arrays(loaded) == arrays(weights)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_keys_are_the_dotted_paths(config: ModelConfig, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, config, make(config))

    keys = set(safetensors.numpy.load_file(tmp_path / "model.safetensors"))

    dense = {name for name, spec in named_leaves(shapes(config)) if spec.kind == "dense"}
    coded = {name for name, spec in named_leaves(shapes(config)) if spec.kind != "dense"}
    assert keys == dense | {f"{n}.codes" for n in coded} | {f"{n}.scales" for n in coded}


def test_a_model_is_mapped_not_copied(saved: Path) -> None:
    _, weights = checkpoint.load(saved)

    assert isinstance(weights.embedding, Int8)
    assert not weights.embedding.codes.flags.writeable
    assert not weights.embedding.codes.flags.owndata


def test_the_same_model_has_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    config, weights = checkpoint.load(saved)

    checkpoint.save(tmp_path / "again", config, weights)

    for path in saved.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_model_can_be_saved_where_it_was_loaded_from(saved: Path) -> None:
    config, weights = checkpoint.load(saved)
    before = arrays(weights)

    checkpoint.save(saved, config, weights)

    assert arrays(weights) == before
    assert arrays(checkpoint.load(saved)[1]) == before


def test_shards_hold_the_same_model(saved: Path) -> None:
    weights = make(CONFIG, seed=1)

    checkpoint.save(saved, CONFIG, weights, max_shard_bytes=1500)

    names = sorted(path.name for path in saved.iterdir())
    assert names[0] == "config.json"
    assert names[-1] == "model.safetensors.index.json"
    assert len(names) > 3
    assert arrays(checkpoint.load(saved)[1]) == arrays(weights)


def test_whoever_may_read_the_configuration_may_read_the_weights(saved: Path) -> None:
    modes = {file.name: file.stat().st_mode for file in saved.iterdir()}

    assert modes["model.safetensors"] == modes["config.json"]


def test_one_file_replaces_shards(saved: Path) -> None:
    checkpoint.save(saved, CONFIG, make(CONFIG), max_shard_bytes=1500)
    (saved / "tokenizer.json").write_text("{}")

    checkpoint.save(saved, CONFIG, make(CONFIG))

    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_rows_stride_does_not_reach_the_file(tmp_path: Path) -> None:
    def transpose(_: str, leaf: Stored) -> Stored:
        return Dense(values=np.asfortranarray(leaf.values)) if isinstance(leaf, Dense) else leaf

    weights = make(CONFIGS["delta"])

    checkpoint.save(tmp_path, CONFIGS["delta"], map_leaves(transpose, weights))

    assert arrays(checkpoint.load(tmp_path)[1]) == arrays(weights)


def test_float32_projections_are_rounded(tmp_path: Path) -> None:
    config = CONFIGS["dynamic"]
    checkpoint.save(tmp_path, config, make(config))
    numbers = np.random.default_rng(0).standard_normal((8, 32), np.float32)
    rewrite(tmp_path, lambda tensors: tensors.update({PROJECTION: numbers}))

    leaf = dict(named_leaves(checkpoint.load(tmp_path)[1]))[PROJECTION]

    assert isinstance(leaf, Dense)
    assert leaf.values.dtype == np.float16
    assert np.array_equal(leaf.values, numbers.astype(np.float16))


def test_projections_beyond_float16_are_refused(tmp_path: Path) -> None:
    config = CONFIGS["dynamic"]
    checkpoint.save(tmp_path, config, make(config))
    numbers = np.full((8, 32), 65520, np.float32)
    rewrite(tmp_path, lambda tensors: tensors.update({PROJECTION: numbers}))

    with pytest.raises(NumericError, match=f"{PROJECTION} holds inf"):
        checkpoint.load(tmp_path)


def test_float32_projections_are_not_saved(tmp_path: Path) -> None:
    config = CONFIGS["dynamic"]

    def widen(name: str, leaf: Stored) -> Stored:
        return Dense(values=np.zeros((8, 32), np.float32)) if name == PROJECTION else leaf

    with pytest.raises(ShapeError, match=f"{PROJECTION} holds .*F32.* asks for .*F16"):
        checkpoint.save(tmp_path, config, map_leaves(widen, make(config)))


def test_float16_dense_leaves_are_widened(saved: Path) -> None:
    weights = make(CONFIG)
    rewrite(saved, lambda tensors: tensors.update(norm=np.float16(tensors["norm"])))

    loaded = checkpoint.load(saved)[1]

    assert arrays(loaded) == arrays(weights)


def test_generation_defaults_pass_through(saved: Path) -> None:
    assert checkpoint.load_generation(saved) == {}

    checkpoint.save(saved, CONFIG, make(CONFIG), generation={"temperature": 0.7, "stop": ["a"]})

    assert checkpoint.load_generation(saved) == {"temperature": 0.7, "stop": ["a"]}


def test_a_generation_default_without_json_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generation_config"):
        checkpoint.save(tmp_path, CONFIG, make(CONFIG), generation={"temperature": float("nan")})


def test_latent_weights_are_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"embedding is latent.*freeze\(weights\)"):
        checkpoint.save(tmp_path, CONFIG, init(CONFIG, np.random.default_rng(0)))


@pytest.mark.parametrize("other", ["experts", "delta", "one stream", "untied", "block 256"])
def test_weights_of_another_configuration_are_not_saved(other: str, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="the configuration that they were made for"):
        checkpoint.save(tmp_path, CONFIG, make(CONFIGS[other]))


def test_weights_for_other_activation_blocks_are_not_saved(tmp_path: Path) -> None:
    config = CONFIGS["block 256"]
    other = ModelConfig(**BLOCKS | {"activation_block": 256})

    with pytest.raises(ShapeError, match="blocks of 256 columns"):
        checkpoint.save(tmp_path, config, make(other))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    def spoil(name: str, leaf: Stored) -> Stored:
        return Dense(values=np.full(16, np.inf, np.float32)) if name == "norm" else leaf

    with pytest.raises(NumericError, match="norm holds inf"):
        checkpoint.save(tmp_path, CONFIG, map_leaves(spoil, make(CONFIG)))


def test_tensors_of_any_names_are_read_as_they_were_saved(tmp_path: Path) -> None:
    tensors = {f"t.{i}": np.full((i, 3), i, np.uint32) for i in range(5)}

    save_tensors(
        tmp_path, tensors, texts={"a.json": {"b": 1}}, others={"c": b"d"}, max_shard_bytes=40
    )
    again = load_tensors(tmp_path)

    assert {key: tensor.array().tolist() for key, tensor in again.items()} == {
        key: array.tolist() for key, array in tensors.items()
    }
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert (tmp_path / "c").read_bytes() == b"d"
    assert (tmp_path / "model-00001-of-00003.safetensors").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    config = CONFIGS["block 256"]
    weights = make(config)
    checkpoint.save(tmp_path, config, weights)

    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert said.startswith(f"cannot write {tmp_path}: ")
    assert "free space or pass another path" in said
    assert arrays(checkpoint.load(tmp_path)[1]) == arrays(weights)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_path_under_a_file_cannot_be_written(saved: Path) -> None:
    with pytest.raises(SaveError, match="pass another path"):
        checkpoint.save(saved / "config.json" / "below", CONFIG, make(CONFIG))


@pytest.mark.parametrize("name", ["", "missing", "a\0b"], ids=["empty", "missing", "null"])
def test_a_directory_without_a_model_is_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="pass a model directory"):
        checkpoint.load(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "llama"}, FormatError, "model_type is 'llama'"),
        ({"model_type": None}, FormatError, "model_type is None"),
        ({"format": 2}, VersionError, "upgrade nanochat-ternary"),
        ({"format": True}, FormatError, "format is True"),
        ({"format": 0}, FormatError, "format is 0"),
        ({"shiny": 1}, ConfigError, "unknown configuration field 'shiny'"),
        ({"width": "256"}, ConfigError, "width='256'"),
        ({"width": 2**60}, ConfigError, "must lie between"),
        ({"layer_pattern": []}, ConfigError, "layer_pattern"),
        ({"layer_pattern": [["attention"]]}, ConfigError, "layer_pattern"),
        ({"num_layers": 1024}, FormatError, "tensors are missing"),
        ({"num_layers": 3}, FormatError, "tensors are missing, the first is layers.2"),
        ({"num_layers": 1}, FormatError, "no part of the model, the first is 'layers.1"),
        ({"vocab_size": 38}, ShapeError, r"embedding.codes has shape \[37, 16\] but .* \[38, 16\]"),
    ],
)
def test_a_wrong_configuration_is_refused(
    changes: dict[str, object], error: type[Exception], message: str, saved: Path
) -> None:
    rewrite_config(saved, **changes)

    with pytest.raises(error, match=message):
        checkpoint.load(saved)


def test_a_configuration_over_the_limit_is_refused(saved: Path) -> None:
    with (saved / "config.json").open("a") as file:
        file.write(" " * 2**20)

    with pytest.raises(FormatError, match="over the limit of 1048576"):
        checkpoint.load(saved)


def test_an_illegal_ternary_pair_is_refused(saved: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["layers.1.mixer.k.codes"][3, 2] = 0b10_11_01_00

    rewrite(saved, spoil)

    with pytest.raises(
        NumericError, match=r"layers.1.mixer.k.codes holds the byte 0xb4 at \[3, 2\]"
    ):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding.codes", -128),
        ("embedding.scales", np.inf),
        ("layers.0.mixer.q.scales", np.nan),
        ("layers.0.mixer_site.mhc.mix", np.nan),
    ],
)
def test_an_impossible_number_is_refused_with_its_name(key: str, value: float, saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors[key].reshape(-1).__setitem__(-1, value))

    with pytest.raises(NumericError, match=key):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop("norm"), FormatError, "1 tensors are missing, the first is norm"),
        (
            lambda t: t.update({"x" * 500: t["norm"]}),
            FormatError,
            "no part of the model, the first is 'xxx",
        ),
        (
            lambda t: t.update(norm=t["norm"].astype(np.int8)),
            FormatError,
            "norm is of type I8, must be F32 or BF16 or F16",
        ),
        (
            lambda t: t.update(norm=t["norm"].astype(np.float64)),
            FormatError,
            "must be of type F32, .*, I8, U8",
        ),
        (
            lambda t: t.update(norm=t["norm"][None]),
            ShapeError,
            r"norm has shape \[1, 16\] but config.json asks for \[16\]",
        ),
    ],
    ids=["missing", "unexpected", "type", "foreign type", "shape"],
)
def test_wrong_tensors_are_refused(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str, saved: Path
) -> None:
    rewrite(saved, change)

    with pytest.raises(error, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["norm"].update(shape=[2**62, 2**62]),
        lambda h: h["norm"].update(shape=[-16]),
        lambda h: h["norm"].update(shape=[16.0]),
        lambda h: h["norm"].update(shape=[True] * 16),
        lambda h: h["norm"].update(shape=[1] * 100_000 + [16]),
        lambda h: h["norm"].update(shape="16"),
        lambda h: h["norm"].update(data_offsets=[-64, 0]),
        lambda h: h["norm"].update(data_offsets=[0, 64]),
        lambda h: h["norm"].update(data_offsets=[10**19, 10**19 + 64]),
        lambda h: h["norm"].update(data_offsets=[0]),
        lambda h: h["norm"].pop("data_offsets"),
        lambda h: h["norm"].update(dtype=3),
        lambda h: h.update(norm=5),
        lambda h: h.update(__metadata__={"crc32": "[]"}),
        lambda h: h.update(__metadata__={"crc32": '{"norm": "x"}'}),
    ],
)
def test_a_hostile_header_is_refused(change: Callable[[dict[str, Any]], Any], saved: Path) -> None:
    rewrite_header(saved, change)

    with pytest.raises(FormatError, match=r"model\.safetensors"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "data",
    [b"", b"1234567", b"\xff" * 8, bytes(8), (2).to_bytes(8, "little") + b"{}", b"\x80\x02}q\x00."],
    ids=["empty", "short", "huge", "no header", "no tensors", "pickle"],
)
def test_what_is_no_model_is_refused(data: bytes, saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(data)

    with pytest.raises(FormatError, match=r"model"):
        checkpoint.load(saved)


def test_bytes_after_the_last_tensor_are_said_and_not_read(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = checkpoint.load(saved)
    with (saved / "model.safetensors").open("ab") as file:
        file.write(b"123")

    with caplog.at_level(logging.WARNING):
        _, found = checkpoint.load(saved)

    assert "3 bytes follow the last tensor" in caplog.text
    for (_, leaf), (_, other) in zip(named_leaves(found), named_leaves(expected), strict=True):
        assert all(np.array_equal(values, vars(other)[name]) for name, values in vars(leaf).items())


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (-1, r"bytes, of the \d+ that its tensors take: the file was cut"),
        (
            200,
            r"200 bytes, of which the first eight tell of a header of \d+ bytes .*: the file was cut",
        ),
        (7, "7 bytes are too short for a safetensors file"),
    ],
)
def test_a_file_that_was_cut_is_said_to_be(kept: int, message: str, saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(FormatError, match=message):
        checkpoint.load(saved)


def test_a_missing_checksum_is_said(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(saved, lambda tensors: tensors.copy())

    with caplog.at_level(logging.WARNING):
        checkpoint.load(saved)

    assert "no checksums" in caplog.text


@pytest.mark.parametrize(
    "home",
    [
        "../secret.safetensors",
        "..\\secret.safetensors",
        "/etc/passwd",
        "C:secret.safetensors",
        "a\0.safetensors",
        "x" * 300 + ".safetensors",
        ".safetensors",
        "model-00001-of-00009.safetensors",
        "model.bin",
        "",
        5,
        ["x"],
    ],
)
def test_an_index_cannot_lead_elsewhere(home: object, saved: Path) -> None:
    checkpoint.save(saved, CONFIG, make(CONFIG), max_shard_bytes=1500)
    path = saved / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["norm"] = home
    path.write_text(json.dumps(index))

    with pytest.raises(FormatError, match=str(saved)):
        checkpoint.load(saved)


def test_a_tensor_in_the_wrong_shard_is_refused(saved: Path) -> None:
    checkpoint.save(saved, CONFIG, make(CONFIG), max_shard_bytes=1500)
    path = saved / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["norm"] = index["weight_map"]["embedding.codes"]
    path.write_text(json.dumps(index))

    with pytest.raises(FormatError, match="norm"):
        checkpoint.load(saved)


def test_a_missing_shard_is_named(saved: Path) -> None:
    checkpoint.save(saved, CONFIG, make(CONFIG), max_shard_bytes=1500)
    path = next(saved.glob("model-00002*"))
    path.unlink()

    with pytest.raises(FormatError, match=path.name):
        checkpoint.load(saved)


def test_two_models_in_one_directory_are_refused(saved: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "other", CONFIG, make(CONFIG), max_shard_bytes=1500)
    for path in (tmp_path / "other").iterdir():
        shutil.copy(path, saved)

    with pytest.raises(FormatError, match="holds both"):
        checkpoint.load(saved)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        checkpoint.save(name, CONFIG, make(CONFIG))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_weights_are_refused_or_harmless(
    data: st.DataObject, files: dict[str, bytes]
) -> None:
    expected = arrays(make(CONFIG))
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        damaged = _damage(data, files["model.safetensors"])
        (Path(name) / "model.safetensors").write_bytes(damaged)

        try:
            _, weights = checkpoint.load(name)
        except NanochatError:
            return

        assert arrays(weights) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_configuration_is_refused_or_fits(
    data: st.DataObject, files: dict[str, bytes]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        (Path(name) / "config.json").write_bytes(_damage(data, files["config.json"]))

        try:
            config, weights = checkpoint.load(name)
        except NanochatError:
            return

        specs = dict(named_leaves(shapes(config)))
        assert specs.keys() == dict(named_leaves(weights)).keys()


def _damage(data: st.DataObject, content: bytes) -> bytes:
    if data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content) - 1))]
    position = data.draw(st.integers(0, len(content) - 1))
    return content[:position] + data.draw(st.binary(max_size=3)) + content[position + 1 :]
