"""Models in several GGUF files, as the gguf library splits them, are read as one."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nanochat.errors import FormatError
from nanochat.export.formats import candidates, load
from nanochat.proof.golden import tensor_digests
from tests.export.foreign_ggufs import Case, metadata, tensors, vocabulary, write

CASE = Case(architecture="qwen3", kind="TQ2_0", table="F16")
FIRST = "model-00001-of-00003.gguf"


def write_parts(folder: Path, *, most: int = 10) -> Path:
    """By the library's own splitting, so many tensors to a file at most; gives the first."""
    writer = gguf.GGUFWriter(folder / "model.gguf", CASE.architecture, split_max_tensors=most)
    for key, value in {**metadata(CASE), **vocabulary()}.items():
        match value:
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for tensor, (shape, number, data) in tensors(CASE).items():
        kind = gguf.GGMLQuantizationType(number)
        rows: Any = data.reshape(*shape[:-1], -1)
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            rows = rows.view(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
            writer.add_tensor(tensor, np.ascontiguousarray(rows))
        else:
            writer.add_tensor(tensor, np.ascontiguousarray(rows), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(folder.glob("model-*.gguf"))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_parts(tmp_path)


def part(first: Path, number: int) -> Path:
    return first.with_name(f"model-{number:05}-of-00003.gguf")


def test_parts_are_one_model(first: Path, tmp_path: Path) -> None:
    assert part(first, 3).is_file()
    whole = tmp_path / "whole"
    whole.mkdir()

    bundle = load(first)

    expected = load(write(whole / "x.gguf", CASE))
    assert tensor_digests(bundle.weights) == tensor_digests(expected.weights)
    assert bundle.config == expected.config


def test_a_repository_with_parts_holds_one_model(first: Path) -> None:
    (found,) = candidates(path.name for path in first.parent.iterdir())

    assert found.place == FIRST
    assert found.files == tuple(part(first, number).name for number in (1, 2, 3))


def test_another_part_names_the_first(first: Path) -> None:
    with pytest.raises(FormatError, match=f"part of a model in 3; pass the first, {FIRST}"):
        load(part(first, 2))


def test_a_part_that_is_missing_is_named(first: Path) -> None:
    part(first, 3).unlink()

    with pytest.raises(FormatError, match=r"00003-of-00003.gguf: no such file"):
        load(first)


def test_a_part_under_another_name_is_refused(first: Path) -> None:
    first.rename(first.with_name("first.gguf"))

    with pytest.raises(FormatError, match=r"split.count is 3.*give the file its name back"):
        load(first.with_name("first.gguf"))


def test_a_part_that_is_there_twice_is_refused(first: Path) -> None:
    shutil.copy(part(first, 2), part(first, 3))

    with pytest.raises(FormatError, match=r"split.no and split.count are 1 and 3, must be 2 and 3"):
        load(first)
