"""Whatever other people's folders say and hold, what comes out is a model or one of our errors.

With ``--long``, a hundred thousand folders for each reader.
"""

import contextlib
import copy
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.blocks.plain import plain
from nanochat.errors import ConfigError, FormatError, NanochatError
from nanochat.export.folders.read import load_foreign_folder
from nanochat.export.format import ModelFiles
from nanochat.export.formats import FORMATS
from nanochat.weights import named_leaves
from tests.export import folder_models, foreign_models, public_ggufs
from tests.export.allocations import BESIDE, allocations_limited
from tests.export.folder_models import keep_ternary, save_mlx, save_unpacked
from tests.export.test_folders_rotated import pack_fields

# As small as blocks of 64 columns allow.
SIZES = {
    "vocab_size": 16,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
KINDS = {
    "bitnet": "bitnet",
    "unpacked": "unpacked",
    "mlx": "mlx-ternary",
    "rotated": "mlx-ternary",
}
# Of each kind of change.
FEW, MANY = 250, 25_000
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    -1,
    7,
    64,
    1024,
    2**31,
    2**63,
    10**30,
    0.0,
    0.5,
    -1.0,
    1e-300,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "yarn",
    "longrope",
    "linear_attention",
    [],
    [1],
    ["delta"],
    {},
    {"a": 1},
    [[]],
    "\ud800",
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that can be read, and how."""
    directory, kind = tmp_path_factory.mktemp(request.param), request.param
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setitem(public_ggufs.CONFIG, name, value)
        if kind == "bitnet":
            model = foreign_models.build("bitlinear", family="llama", vocabulary=16)
            foreign_models.save(model, "bitlinear", directory)
        else:
            other = folder_models.build("qwen3_5")
            codes = keep_ternary(other, but=("in_proj_a", "in_proj_b", "conv1d"))
            if kind == "unpacked":
                save_unpacked(other, directory)
            elif kind == "mlx":
                save_mlx(other, codes, directory)
            else:
                signs = {128: np.ones(128, np.float32)}
                fields = pack_fields(codes, schema=2)
                for record in fields["modules"]:  # type: ignore[attr-defined]  # a list
                    record["block"] = 64
                save_mlx(other, codes, directory, signs=signs, fields=fields)
    return directory, FORMATS[KINDS[kind]]


def read(directory: Path, form: Any) -> None:
    """Every leaf, looked at as a backend looks at it."""
    files = ModelFiles(directory)
    reason = form.refusal(files)
    if reason is not None:
        raise FormatError(reason)
    assert files.config is not None
    config, weights = load_foreign_folder(directory, files.config, form.packing)
    assert form.config(files) == config
    for _, leaf in named_leaves(weights):
        plain(leaf)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in what JSON holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def mutated(value: Any, generator: np.random.Generator) -> Any:
    """The same with one to three values replaced, or deleted."""
    value = json.loads(json.dumps(value))
    for _ in range(generator.integers(1, 4)):
        paths = list(places(value))
        if not paths:
            break
        *outer, last = paths[generator.integers(len(paths))]
        inner = value
        for key in outer:
            inner = inner[key]
        if generator.random() < 0.2:
            del inner[last]
        else:
            # A copy, which may be changed in its turn.
            inner[last] = copy.deepcopy(VALUES[generator.integers(len(VALUES))])
    return value


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file of tensors, and their bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + data


def test_a_folder_that_is_not_changed_is_read(folder: tuple[Path, Any]) -> None:
    read(*folder)


def test_sizes_that_no_tensor_has_are_refused_in_little_memory(
    folder: tuple[Path, Any], tmp_path: Path
) -> None:
    whole, form = folder
    directory = shutil.copytree(whole, tmp_path / "x")
    config = directory / "config.json"
    fields = json.loads(config.read_text())
    text = fields.get("text_config", fields)
    text |= {"num_attention_heads": 1024, "num_key_value_heads": 1024, "head_dim": 1024}
    config.write_text(json.dumps(fields))

    tracemalloc.start()
    with pytest.raises(
        ConfigError, match=r"num_heads \* head_dim is 1048576, and the tensors have"
    ):
        read(directory, form)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**20


@pytest.mark.parametrize("what", ["configuration", "header", "tensors", "bytes"])
def test_any_folder_is_read_or_refused(
    what: str, folder: tuple[Path, Any], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    whole, form = folder
    directory = shutil.copytree(whole, tmp_path / "x")
    file, config = directory / "model.safetensors", directory / "config.json"
    content, fields = file.read_bytes(), json.loads(config.read_text())
    header, data = split(content)
    generator = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}

    for _ in range(MANY if pytestconfig.getoption("--long") else FEW):
        match what:
            case "configuration":
                config.write_text(json.dumps(mutated(fields, generator)))
            case "header":
                file.write_bytes(joined(mutated(header, generator), data))
            case "tensors":
                file.write_bytes(joined(header, damaged(data, generator)))
            case _:
                file.write_bytes(damaged(content, generator))
        outcomes["refused"] += 1
        with contextlib.suppress(NanochatError), allocations_limited(2 * len(content) + BESIDE):
            read(directory, form)
            outcomes["read"] += 1
            outcomes["refused"] -= 1

    assert outcomes["refused"] > 0


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """The same with some bytes that are random, or cut."""
    changed: NDArray[np.uint8] = np.frombuffer(data, np.uint8).copy()
    start = generator.integers(len(changed))
    count = generator.integers(1, 9)
    changed[start : start + count] = generator.integers(0, 256, len(changed[start : start + count]))
    return changed[: start if generator.random() < 0.1 else None].tobytes()
