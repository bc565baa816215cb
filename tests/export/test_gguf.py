"""A GGUF file holds the model exactly, other readers agree, and no file does more than raise."""

import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import checkpoint, ternary
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import (
    ConfigError,
    FormatError,
    InputError,
    NanochatError,
    NumericError,
    VersionError,
)
from nanochat.export.formats import load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.types import F16
from nanochat.export.gguf.write import write_gguf
from nanochat.init import freeze, init
from nanochat.proof.golden import record
from nanochat.text.tokenizer import CHAT_TEMPLATE, SPECIALS, Tokenizer
from nanochat.weights import Dense, Int8, Stored, Ternary, Weights, map_leaves, named_leaves

BASE: dict[str, Any] = {
    "vocab_size": 300,
    "width": 256,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 1,
    "head_dim": 64,
    "ffn_width": 512,
    "num_streams": 2,
}
CONFIGS = {
    "dense": ModelConfig(**BASE),
    "row": ModelConfig(**BASE | {"weight_block": "row", "activation_block": "token"}),
    "experts": ModelConfig(**BASE | {"num_experts": 2, "expert_width": 256}, sub_norm=True),
    "delta": ModelConfig(**BASE, layer_pattern=("delta",), norm_eps=1e-5),
    "loop": ModelConfig(**BASE, loop_count=2, exit_threshold=0.25, num_ahead=1),
    "sequential heads": ModelConfig(**BASE, num_ahead=2, ahead_kind="sequential"),
    "dense table": ModelConfig(**BASE, table_format="dense", tie_embeddings=False),
    "ternary table, 16-bit head": ModelConfig(
        **BASE, table_format="ternary", head_format="bfloat16", tie_embeddings=False
    ),
    "tables of blocks": ModelConfig(
        **BASE, table_format="int8_32", head_format="float16", tie_embeddings=False
    ),
    "rotated": ModelConfig(
        **BASE, rotation_block=256, table_format="ternary", rope_type="linear", rope_dims=32
    ),
    "dynamic": ModelConfig(**BASE, coefficients="dynamic", attention_gate=True),
}
CONFIG = CONFIGS["dense"]
TOKENIZER = Tokenizer.train(["to be or not to be, that is the question"] * 3, vocab_size=280)

ROOT = Path(__file__).parents[2]

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nanochat.errors import SaveError
from nanochat.export.formats import load
from nanochat.export.gguf.write import write_gguf
from nanochat.bundle import Bundle
path = Path(sys.argv[1])
bundle = load(path)
config, weights, tokenizer = bundle.config, bundle.weights, bundle.tokenizer
source = Bundle(name="x", config=config, weights=weights, tokenizer=tokenizer, generation={})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_gguf(path, source)
except SaveError as error:
    print(error)
"""


def frozen(config: ModelConfig) -> Weights[Stored]:
    return freeze(init(config, np.random.default_rng(0)))


def make(config: ModelConfig, weights: Weights[Stored] | None = None) -> Bundle:
    return Bundle(
        name="tiny",
        config=config,
        weights=weights or frozen(config),
        tokenizer=TOKENIZER,
        generation={},
        licence="MIT",
    )


def arrays(weights: Weights[Stored]) -> dict[str, Any]:
    return {
        f"{name}.{field}": value.tolist() if isinstance(value, np.ndarray) else value
        for name, leaf in named_leaves(weights)
        for field, value in vars(leaf).items()
    }


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a whole file."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, make(CONFIG))
    return path.read_bytes()


@pytest.fixture
def written(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_model_is_read_as_it_was_written(config: ModelConfig, tmp_path: Path) -> None:
    weights = frozen(config)

    write_gguf(tmp_path / "x.gguf", make(config, weights))
    bundle = load(tmp_path / "x.gguf")
    loaded_config, loaded, loaded_tokenizer = bundle.config, bundle.weights, bundle.tokenizer

    assert loaded_config == config
    assert arrays(loaded) == arrays(weights)
    assert loaded_tokenizer.fingerprint == TOKENIZER.fingerprint


def test_a_projection_is_written_in_float16(tmp_path: Path) -> None:
    config, name = CONFIGS["dynamic"], "layers.0.mixer_site.mhc.projection"
    numbers = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float16)

    def fill(path: str, leaf: Stored) -> Stored:
        return Dense(values=numbers) if path == name else leaf

    weights = map_leaves(fill, frozen(config))
    write_gguf(tmp_path / "x.gguf", make(config, weights))

    tensor = read_gguf(tmp_path / "x.gguf").tensors[name]
    leaf = dict(named_leaves(load(tmp_path / "x.gguf").weights))[name]

    assert tensor.kind == F16
    assert isinstance(leaf, Dense)
    assert np.array_equal(leaf.values, numbers)


def test_a_loaded_file_is_a_checkpoint_again(written: Path, tmp_path: Path) -> None:
    bundle = load(written)
    config, weights = bundle.config, bundle.weights

    checkpoint.save(tmp_path / "model", config, weights)

    assert arrays(checkpoint.load(tmp_path / "model")[1]) == arrays(frozen(CONFIG))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_library_reads_the_same_values(config: ModelConfig, tmp_path: Path) -> None:
    weights = frozen(config)
    write_gguf(tmp_path / "x.gguf", make(config, weights))

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}

    assert tensors.keys() == dict(named_leaves(weights)).keys()
    for name, leaf in named_leaves(weights):
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert np.array_equal(values, dequantized(leaf)), name


def dequantized(leaf: Stored) -> Any:
    match leaf:
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns)
            return ternary.dequantize(codes, leaf.scales)
        case Int8():
            return ternary.dequantize(leaf.codes, leaf.scales)
        case Dense():
            return leaf.values
    raise AssertionError


def test_names_fit_the_64_bytes_of_ggml(content: bytes, written: Path) -> None:
    assert content

    assert all(len(name.encode()) < 64 for name in read_gguf(written).tensors)


def test_the_library_reads_the_metadata(written: Path) -> None:
    fields = gguf.GGUFReader(written).fields
    found = {key: field.contents() for key, field in fields.items()}

    assert found["general.architecture"] == "nanochat"
    assert found["general.name"] == "tiny"
    assert found["general.license"] == "MIT"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_TQ2_0
    assert found["general.quantization_version"] == 2
    assert found["nanochat.context_length"] == CONFIG.context_length
    assert found["nanochat.embedding_length"] == 256
    assert found["nanochat.block_count"] == 1
    assert found["nanochat.attention.head_count"] == 4
    assert found["nanochat.attention.head_count_kv"] == 1
    assert found["nanochat.config.norm_eps"] == 1e-6


def test_the_tokenizer_is_one_that_llama_cpp_knows(written: Path) -> None:
    fields = gguf.GGUFReader(written).fields
    found = {key: field.contents() for key, field in fields.items()}

    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.tokens"][: TOKENIZER.vocab_size] == list(TOKENIZER.pieces)
    assert found["tokenizer.ggml.tokens"][-1] == "<|unused 299|>"
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in TOKENIZER.merges]
    assert found["tokenizer.ggml.token_type"][:8] == [gguf.TokenType.CONTROL] * 7 + [1]
    assert found["tokenizer.ggml.token_type"][-1] == gguf.TokenType.UNUSED
    assert found["tokenizer.ggml.bos_token_id"] == SPECIALS.index("<|bos|>")
    assert found["tokenizer.ggml.eos_token_id"] == SPECIALS.index("<|eos|>")
    assert found["tokenizer.ggml.eot_token_id"] == SPECIALS.index("<|end|>")
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_the_same_model_has_the_same_bytes(content: bytes, tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", make(CONFIG))

    assert (tmp_path / "x.gguf").read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_block": 128}, "a scale for every 128 columns.*pass outtype=q2_0 or f16"),
        (
            {"width": 320, "weight_block": "row", "activation_block": "token"},
            "has 320 columns: TQ2_0",
        ),
        (
            {"width": 16, "weight_block": "row", "activation_block": "token"},
            "embedding has 16 columns: Q8_0",
        ),
    ],
)
def test_a_model_that_the_formats_cannot_hold_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = ModelConfig(**BASE | changes)

    with pytest.raises(ConfigError, match=message):
        write_gguf(tmp_path / "x.gguf", make(config))

    assert not list(tmp_path.iterdir())


def test_latent_weights_are_refused(tmp_path: Path) -> None:
    weights = init(CONFIG, np.random.default_rng(0))

    with pytest.raises(InputError, match="latent"):
        write_gguf(tmp_path / "x.gguf", make(CONFIG, weights))


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(**BASE | {"vocab_size": 279})

    with pytest.raises(FormatError, match="280 tokens, more than the 279"):
        write_gguf(tmp_path / "x.gguf", make(config))


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_full_disk_leaves_the_old_file(written: Path, content: bytes) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(written)]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert said.startswith(f"cannot write {written}: ")
    assert written.read_bytes() == content
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def write_container(
    path: Path, values: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0)
) -> None:
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, *counts) + values + tensors)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("values", "tensors", "counts"),
    [
        (b"", b"", (0, 2**63)),
        (b"", b"", (2**63, 0)),
        (struct.pack("<Q", 2**62), b"", (0, 1)),
        (text(b"\xff"), b"", (0, 1)),
        (text(b"a") + struct.pack("<I", 99), b"", (0, 1)),
        (text(b"a") + struct.pack("<IIQ", 9, 0, 2**62), b"", (0, 1)),
        (text(b"a") + struct.pack("<IIQ", 9, 8, 2**62), b"", (0, 1)),
        (text(b"a") + struct.pack("<IIQ", 9, 9, 0), b"", (0, 1)),
        ((text(b"a") + struct.pack("<IB", 0, 1)) * 2, b"", (0, 2)),
        (text(b"general.alignment") + struct.pack("<II", 4, 0), b"", (0, 1)),
        (text(b"general.alignment") + struct.pack("<II", 4, 3), b"", (0, 1)),
        (text(b"general.alignment") + struct.pack("<IQ", 10, 2**63), b"", (0, 1)),
        (b"", text(b"x") + struct.pack("<IIQ", 0, 0, 0), (1, 0)),
        (b"", text(b"x") + struct.pack("<I", 2**31), (1, 0)),
        (b"", text(b"x") + struct.pack("<IQIQ", 1, 2**60, 0, 0), (1, 0)),
        (b"", text(b"x") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0), (1, 0)),
        (b"", text(b"x") + struct.pack("<IQIQ", 1, 1, 0, 2**63), (1, 0)),
        (b"", text(b"x") + struct.pack("<IQIQ", 1, 1, 0, 4), (1, 0)),
        (b"", text(b"x") + struct.pack("<IQIQ", 1, 1, 99, 0), (1, 0)),
        (b"", text(b"x") + struct.pack("<IQIQ", 1, 255, 35, 0), (1, 0)),
        (b"", b"", (0, 0)),
    ],
)
def test_a_hostile_header_is_refused(
    values: bytes, tensors: bytes, counts: tuple[int, int], tmp_path: Path
) -> None:
    write_container(tmp_path / "x.gguf", values, tensors, counts)

    with pytest.raises(FormatError, match=r"x\.gguf"):
        load(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", FormatError, "too short"),
        (b"PK\x03\x04" + bytes(100), FormatError, "begins with"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(100), VersionError, "version 4"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), FormatError, "version 1, must be 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), FormatError, "big-endian"),
    ],
)
def test_what_is_no_gguf_of_a_known_version_is_refused(
    data: bytes, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.gguf").write_bytes(data)

    with pytest.raises(error, match=message):
        load(tmp_path / "x.gguf")


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        load(tmp_path / "x.gguf")


def test_bytes_after_the_last_tensor_are_said_and_not_read(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(written)
    with written.open("ab") as file:
        file.write(bytes(33))

    with caplog.at_level(logging.WARNING):
        found = load(written)

    assert "33 bytes follow the last tensor" in caplog.text
    assert found.golden == expected.golden


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (-1, r"bytes, of the \d+ that its tensors take: the file was cut"),
        (-1000, r"bytes, of the \d+ that its tensors take: the file was cut"),
        (300, r"the metadata are cut: the value at byte \d+ takes \d+ bytes, and \d+ follow"),
        (20, "20 bytes are too short for a GGUF file"),
    ],
)
def test_a_file_that_was_cut_is_said_to_be(written: Path, kept: int, message: str) -> None:
    written.write_bytes(written.read_bytes()[:kept])

    with pytest.raises(FormatError, match=message):
        load(written)


def test_version_2_is_read_as_3_is(written: Path) -> None:
    expected = load(written)
    with written.open("rb+") as file:
        file.seek(4)
        file.write(struct.pack("<I", 2))

    assert load(written).golden == expected.golden


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (text(b"nanochat"), text(b"nanochit"), FormatError, "architecture is 'nanochit'"),
        (
            text(b"nanochat.format") + struct.pack("<II", 4, 1),
            text(b"nanochat.format") + struct.pack("<II", 4, 2),
            VersionError,
            "upgrade",
        ),
        (b"nanochat.config.ffn_width", b"nanochat.config.ffn_wider", ConfigError, "ffn_wider"),
        (text(b"gpt-2"), text(b"gpt-4"), FormatError, "tokenizer.ggml.pre is 'gpt-4'"),
        (text(b"<|unused 299|>"), text(b"<|unused 298|>"), FormatError, "tokens that repeat"),
        (text(b"layers.0.mixer.q"), text(b"layers.0.mixer.z"), FormatError, "missing"),
        (text(b"t o"), text(b"two"), FormatError, "no pairs"),
    ],
)
def test_a_changed_file_is_refused(
    old: bytes, new: bytes, error: type[Exception], message: str, written: Path
) -> None:
    patch(written, old, new)

    with pytest.raises(error, match=message):
        load(written)


def spoil(path: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change the bytes of a tensor in place."""
    tensor = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == name)
    change(tensor.data)


def test_an_illegal_ternary_pair_is_refused(written: Path) -> None:
    spoil(written, "layers.0.mixer.k", lambda data: data[3].__setitem__(5, 0b11))

    with pytest.raises(
        NumericError, match=r"layers.0.mixer.k has a code 3 in row 3, columns 0 to 255"
    ):
        load(written)


def test_a_scale_that_is_not_finite_is_refused(written: Path) -> None:
    spoil(written, "layers.0.mixer.k", lambda data: data[2].__setitem__(65, 0x7C))

    with pytest.raises(NumericError, match=r"layers.0.mixer.k.scales"):
        load(written)


def test_a_row_with_two_scales_is_refused(written: Path) -> None:
    spoil(written, "embedding", lambda data: data[9].__setitem__(34, data[9][34] ^ 1))

    with pytest.raises(FormatError, match=r"embedding has scales that differ .* in row 9"):
        load(written)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_legal(
    data: st.DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Metadata are the first 20 kB; a change of the numbers behind them is checked above.
    position = data.draw(st.integers(0, 20_000) | st.integers(0, len(content) - 1))
    damaged = content[:position]
    if data.draw(st.booleans()):
        damaged += data.draw(st.binary(max_size=3)) + content[position + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)

    try:
        weights = load(path).weights
    except NanochatError:
        return

    for name, leaf in named_leaves(weights):
        checkpoint.require_legal(name, leaf)


def test_a_file_carries_the_golden_record_of_its_model(written: Path) -> None:
    assert load(written).golden == record(make(CONFIG))


def test_a_file_without_a_golden_record_says_so(written: Path) -> None:
    patch(written, text(b"nanochat.golden"), text(b"nanochat.silver"))

    assert load(written).golden is None


def test_a_damaged_golden_record_is_refused(written: Path) -> None:
    patch(written, b'{"format":2,"tokens":[', b'{"format":2,"tokens":{')

    with pytest.raises(FormatError, match=r"model\.gguf, nanochat\.golden"):
        load(written)
