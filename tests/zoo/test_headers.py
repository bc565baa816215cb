"""The shapes of the catalog are those that full-size headers tell: all names, shapes and types, and no weights."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.config import ModelConfig, config_to_dict
from nanochat.cost import cost
from nanochat.export.folders.names import folder_places
from nanochat.export.folders.tensors import FLOATS, open_folder
from nanochat.export.formats import load_header_config
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.export.gguf.parts import read_whole
from nanochat.shapes import shapes
from nanochat.weights import TernaryBlocks, named_leaves
from nanochat.zoo.catalog import CATALOG
from tests.zoo.headers import (
    BF16,
    F32,
    KEYS_OF_QWEN35,
    LEGACY_Q2_0,
    PQ2_0,
    PTQ1_0,
    Q1_0,
    Q2_0,
    Kind,
    keys_of_qwen3,
    qwen3,
    qwen35,
    rotations,
    vocabulary,
    write,
    write_folder,
)

# Of our own models, one ships, and of the others there are no files yet.
PUBLIC = {name: entry for name, entry in CATALOG.items() if entry.repo is not None}
# Of their authors' sizes nothing is certain before one of their files is read.
UNKNOWN = {
    *(f"bitcpm4-{size}" for size in ("0.5b", "1b")),
    *(f"bitcpm-cann-{size}" for size in ("0.5b", "1b", "3b", "8b")),
    *(f"falcon-e-1b-{kind}" for kind in ("base", "instruct")),
}
FILES = {name for name, entry in PUBLIC.items() if entry.part and name not in UNKNOWN}
FOLDERS = PUBLIC.keys() - FILES - UNKNOWN

SMALL = {
    "1.7b": (2048, 28, 16, 6144, 32_768),
    "4b": (2560, 36, 32, 9728, 32_768),
    "8b": (4096, 36, 32, 12_288, 65_536),
}


def config_of(name: str) -> ModelConfig:
    config = CATALOG[name].config
    assert config is not None
    return config


def require_same(told: ModelConfig, name: str) -> None:
    found, expected = config_to_dict(told), config_to_dict(config_of(name))
    # float32 in a file.
    assert found.pop("norm_eps") == pytest.approx(expected.pop("norm_eps"))
    assert found == expected


def require_planned(path: Path, name: str) -> None:
    """The header tells the configuration, and so do the tensors."""
    require_same(load_header_config(path), name)
    require_leaves(path, name)


def require_leaves(path: Path, name: str) -> None:
    """The plan of all leaves, which are views of the file, tells the configuration, too."""
    config, weights, codec = load_foreign_gguf(path, read_whole(path))

    require_same(config, name)
    specs = dict(named_leaves(shapes(config)))
    leaves = dict(named_leaves(weights))
    assert leaves.keys() == specs.keys()
    for leaf, spec in specs.items():
        assert isinstance(leaves[leaf], TernaryBlocks) == (spec.kind == "ternary")
    assert codec.vocab_size <= config.vocab_size


def require_stored(folder: Path, name: str, *, packed: bool) -> None:
    """The tensors are those that the configuration asks for, of their types and shapes, and no others."""
    tensors, places = open_folder(folder, has_other_parts=False), folder_places(config_of(name))
    specs = dict(named_leaves(shapes(config_of(name))))
    taken = set()
    for leaf, place in places.items():
        rows, *columns = specs[leaf].shape
        if packed and specs[leaf].kind == "ternary":
            tensors.take(place.tensor, (rows // 4, *columns), "U8")
            tensors.take(f"{place.tensor}_scale", (1,), *FLOATS)
            taken.add(f"{place.tensor}_scale")
        else:
            tensors.take(place.tensor, (rows, *columns), *FLOATS)
        taken.add(place.tensor)
    assert set(tensors.keys) == taken


def test_every_public_model_has_a_header_here_or_no_known_shape() -> None:
    written = {f"{kind}-{size}" for kind in ("bonsai", "ternary-bonsai") for size in SMALL}
    written |= {"bonsai-27b", "ternary-bonsai-27b", "ternary-bonsai-2-27b"}

    assert written == FILES
    assert {name for name in PUBLIC if name.startswith(tuple(QUANTIZATIONS))} == FOLDERS
    assert {name for name, entry in PUBLIC.items() if entry.config is None} == UNKNOWN


def write_small(path: Path, size: str, kind: Kind) -> Path:
    *shape, context = SMALL[size]
    width, layers, heads, hidden = shape
    tensors = qwen3(width, layers, heads, hidden, tied=size != "8b", kind=kind)
    keys = keys_of_qwen3(width, layers, heads, hidden, context) | vocabulary(300, "qwen2")
    return write(path, keys, tensors)


@pytest.mark.parametrize("kind", [PQ2_0, LEGACY_Q2_0, Q1_0], ids=["PQ2_0", "legacy Q2_0", "Q1_0"])
@pytest.mark.parametrize("size", SMALL)
def test_the_small_bonsai_are_what_their_headers_tell(
    tmp_path: Path, size: str, kind: Kind
) -> None:
    path = write_small(tmp_path / "x.gguf", size, kind)

    require_planned(path, f"{'bonsai' if kind == Q1_0 else 'ternary-bonsai'}-{size}")


@pytest.mark.parametrize("size", SMALL)
def test_headers_of_blocks_of_64_tell_the_small_bonsai_but_for_their_blocks(
    tmp_path: Path, size: str
) -> None:
    told = load_header_config(write_small(tmp_path / "x.gguf", size, Q2_0))

    assert (told.weight_block, told.activation_block) == (64, 64)
    require_same(replace(told, weight_block=128, activation_block=128), f"ternary-bonsai-{size}")


def test_tensors_of_blocks_of_64_tell_those_that_share_scales(tmp_path: Path) -> None:
    # All of them are read, which takes its time in larger models.
    require_leaves(write_small(tmp_path / "x.gguf", "1.7b", Q2_0), "ternary-bonsai-1.7b")


@pytest.mark.parametrize(
    ("name", "kind", "gigabytes"),
    [("ternary-bonsai-27b", PQ2_0, 7.15), ("bonsai-27b", Q1_0, 3.8)],
    ids=["PQ2_0", "Q1_0"],
)
def test_the_27b_models_are_what_their_headers_tell(
    tmp_path: Path, name: str, kind: Kind, gigabytes: float
) -> None:
    tensors = qwen35(kind, kind)
    assert sum(one == kind for _, _, one in tensors) == 498
    assert len(tensors) == 851

    path = write(tmp_path / "x.gguf", KEYS_OF_QWEN35 | vocabulary(300, "qwen35"), tensors)

    require_planned(path, name)
    assert path.stat().st_size == pytest.approx(gigabytes * 1e9, rel=5e-3)


# To read as many tokens as the published file has takes most of a minute.
@pytest.mark.parametrize(
    ("kind", "gigabytes", "tokens"),
    [
        pytest.param(PQ2_0, 7.21, 300, id="PQ2_0", marks=pytest.mark.long),
        pytest.param(PQ2_0, 7.21, 248_320, id="PQ2_0, all tokens", marks=pytest.mark.long),
        pytest.param(PTQ1_0, 5.9, 300, id="PTQ1_0"),
    ],
)
def test_the_rotated_27b_model_is_what_its_header_tells(
    tmp_path: Path, kind: Kind, gigabytes: float, tokens: int
) -> None:
    tensors = qwen35(BF16, kind)
    assert [sum(k == one for _, _, k in tensors) for one in (kind, BF16, F32)] == [402, 96, 353]
    keys = KEYS_OF_QWEN35 | rotations(tensors) | vocabulary(tokens, "qwen35")

    path = write(tmp_path / "x.gguf", keys, tensors)

    require_planned(path, "ternary-bonsai-2-27b")
    assert path.stat().st_size == pytest.approx(gigabytes * 1e9, rel=1e-2)


def test_falcon_e_3b_is_as_large_as_its_file() -> None:
    assert cost(config_of("falcon-e-3b-base"), context=1).stored_bytes == pytest.approx(
        999e6, rel=2e-3
    )


# What stands beside weights in folders, by the beginning of a name.
QUANTIZATIONS: dict[str, object] = {
    "bitnet": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    "falcon-e-3b": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    "falcon3": {"quant_method": "bitnet"},
    "llama3": {"quant_method": "bitnet"},
    "trilm": None,
}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_folder_is_what_its_headers_tell(tmp_path: Path, name: str) -> None:
    config = config_of(name)
    beginning = next(word for word in QUANTIZATIONS if name.startswith(word))

    write_folder(
        tmp_path,
        config,
        model_type="bitnet" if beginning == "bitnet" else "llama",
        dtype="F16" if beginning == "trilm" else "BF16",
        quantization=QUANTIZATIONS[beginning],
    )

    tracemalloc.start()
    told = load_header_config(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    require_same(told, name)
    require_stored(tmp_path, name, packed=QUANTIZATIONS[beginning] is not None)
    # Of 8 GB, no tensor was read.
    assert peak < 50e6
