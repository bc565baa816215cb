"""Which of its two layouts the type number 42 stands for is told by the file, or the file is refused."""

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import FormatError
from nanochat.export.gguf.container import NewTensor, read_gguf, write_container
from nanochat.export.gguf.types import I2_S, PQ2_0, PTQ1_0, Q1_0, Q2_0, TQ1_0, TensorType

# Columns of a block under the number 42, by what it is then called.
BLOCKS = {"Q2_0": 64, "PQ2_0": 128}
NORM = (0, (64,), np.ones(64, np.float32).tobytes())


def ternary_bytes(shape: tuple[int, ...], columns: int, seed: int = 0) -> bytes:
    """Random blocks of a scale and codes, each put together from bytes."""
    generator = np.random.default_rng(seed)
    count = int(np.prod(shape)) // columns
    scales = generator.uniform(0.01, 0.05, (count, 1)).astype("<f2").view(np.uint8)
    digits = generator.integers(0, 3, (count, columns // 4, 4), np.uint8)
    codes = digits @ np.array([1, 4, 16, 64], np.uint8)
    return np.concatenate([scales, codes.astype(np.uint8)], axis=1).tobytes()


def of_42(shape: tuple[int, ...], kind: str, seed: int = 0) -> Any:
    return (42, shape, ternary_bytes(shape, BLOCKS[kind], seed))


def write(path: Path, *tensors: Any, alignment: int = 32, behind: bytes = b"") -> Path:
    """Write a file whose tensors, a number of a type with a shape and bytes each, are called 0, 1 and so on."""

    def text(word: bytes) -> bytes:
        return struct.pack("<Q", len(word)) + word

    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1)
    header += text(b"general.alignment") + struct.pack("<II", 4, alignment)
    data = b""
    for name, (number, shape, content) in enumerate(tensors):
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += text(str(name).encode()) + dimensions + struct.pack("<IQ", number, len(data))
        data += content + bytes(-len(content) % alignment)
    path.write_bytes(header + bytes(-len(header) % alignment) + data + behind)
    return path


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shapes", [[(64, 256), (33, 128)], [(3, 64, 128)]], ids=str)
def test_the_layout_is_told_by_the_offsets(
    kind: TensorType, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    tensors = [of_42(shape, kind.name) for shape in shapes]

    found = read_gguf(write(tmp_path / "x.gguf", NORM, *tensors, NORM)).tensors

    for tensor, (_, shape, content) in zip(list(found.values())[1:], tensors, strict=False):
        assert (tensor.kind, tensor.shape) == (kind, shape)
        assert tensor.data.tobytes() == content


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0], ids=lambda kind: kind.name)
def test_the_layout_of_one_tensor_is_told_by_the_end_of_the_file(
    kind: TensorType, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.gguf", NORM, of_42((64, 128), kind.name))

    assert read_gguf(path).tensors["1"].kind == kind


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0], ids=lambda kind: kind.name)
def test_where_padding_hides_it_the_layout_is_told_by_legal_bytes(
    kind: TensorType, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.gguf", of_42((8, 128), kind.name), NORM, alignment=1024)

    assert read_gguf(path).tensors["0"].kind == kind


# Bytes that hold no pair 3 in either layout: a scale of 2, and codes of -1.
TWO = b"\x00\x40"


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0], ids=lambda kind: kind.name)
def test_the_end_of_the_file_decides_where_all_bytes_are_legal(
    kind: TensorType, tmp_path: Path
) -> None:
    content = (TWO + bytes(kind.columns // 4)) * (64 * 128 // kind.columns)
    path = write(tmp_path / "x.gguf", (42, (64, 128), content))

    assert read_gguf(path).tensors["0"].kind == kind


def test_what_were_padding_is_zero_in_the_right_layout(tmp_path: Path) -> None:
    content = TWO + bytes(16) + TWO + bytes(14) + b"\x55\x55"
    path = write(tmp_path / "x.gguf", (42, (1, 128), content), alignment=64)

    assert read_gguf(path).tensors["0"].kind == Q2_0


def test_what_were_scales_is_not_negative_in_the_right_layout(tmp_path: Path) -> None:
    content = TWO + bytes(16) + b"\x00\xa0" + bytes(14)
    path = write(tmp_path / "x.gguf", (42, (1, 128), content), alignment=64)

    assert read_gguf(path).tensors["0"].kind == PQ2_0


def test_bytes_behind_the_last_tensor_do_not_hide_its_layout(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.gguf", of_42((64, 128), "PQ2_0"), behind=bytes(1000))

    with caplog.at_level(logging.INFO):
        found = read_gguf(path).tensors["0"].kind

    assert found == PQ2_0
    assert "1000 bytes follow the last tensor" in caplog.text
    assert "type 42 is PQ2_0, blocks of 128 columns in 34 bytes" in caplog.text


def test_rows_that_are_no_blocks_of_128_are_blocks_of_64(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", of_42((1, 192), "Q2_0"))

    assert read_gguf(path).tensors["0"].kind == Q2_0


def test_what_is_legal_in_both_layouts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", (42, (1, 128), TWO + bytes(32)))

    with pytest.raises(
        FormatError,
        match=r"may be Q2_0, blocks of 64 .* or PQ2_0, blocks of 128 .* legal in both; fetch",
    ):
        read_gguf(path)


def test_what_is_legal_in_neither_layout_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", (42, (1, 128), TWO + b"\xff" * 32))

    with pytest.raises(FormatError, match="legal in neither; fetch"):
        read_gguf(path)


def test_what_fits_neither_layout_is_refused_with_both_faults(tmp_path: Path) -> None:
    content = ternary_bytes((64, 256), 64)
    path = write(tmp_path / "x.gguf", (42, (64, 256), content + bytes(64)), NORM)

    with pytest.raises(
        FormatError,
        match=r"fits neither as Q2_0, .*at byte 4672: .*, and at 4608,.* second .*, and at 4352,",
    ):
        read_gguf(path)


def test_two_tensors_of_different_layouts_are_refused(tmp_path: Path) -> None:
    tensors = [of_42((64, 128), "Q2_0"), of_42((64, 128), "PQ2_0")]

    with pytest.raises(FormatError, match=r"x\.gguf: "):
        read_gguf(write(tmp_path / "x.gguf", *tensors, NORM))


@pytest.mark.parametrize("lost", [10, 700])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_cut_file_of_either_layout_is_said_to_be_cut(
    kind: str, count: int, lost: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.gguf", *[of_42((64, 128), kind)] * count)
    path.write_bytes(path.read_bytes()[:-lost])

    with pytest.raises(FormatError, match="the file was cut"):
        read_gguf(path)


def test_a_row_that_is_padded_to_a_block_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", (42, (2, 100), ternary_bytes((2, 128), 64)))

    with pytest.raises(FormatError, match=r"rows of 100 columns, must be a multiple of 64 .* 128"):
        read_gguf(path)


def test_an_empty_tensor_decides_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", (42, (0, 128), b""), of_42((64, 128), "PQ2_0"))

    assert {tensor.kind for tensor in read_gguf(path).tensors.values()} == {PQ2_0}


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 128)], ids=str)
def test_tensors_of_nothing_alone_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="legal in both"):
        read_gguf(write(tmp_path / "x.gguf", (42, shape, b"")))


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([Q2_0, PQ2_0]),
    shapes=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([128, 256, 384])), min_size=1, max_size=4
    ),
    alignment=st.sampled_from([1, 32, 4096]),
    norms=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_layout_is_never_taken_for_the_other(
    kind: TensorType,
    shapes: list[tuple[int, int]],
    alignment: int,
    norms: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tensors = [of_42(shape, kind.name, seed + n) for n, shape in enumerate(shapes)]
    path = tmp_path_factory.getbasetemp() / "layout.gguf"
    write(path, *tensors, *[NORM] * norms, alignment=alignment)

    try:
        found = read_gguf(path).tensors["0"].kind
    except FormatError as error:
        assert "legal in both" in str(error)  # noqa: PT017 - either is right
        return

    assert found == kind


@pytest.mark.parametrize("kind", [Q1_0, Q2_0, PQ2_0, PTQ1_0, TQ1_0], ids=lambda kind: kind.name)
def test_a_file_of_this_package_has_blocks_of_any_type(kind: TensorType, tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 7 * kind.num_bytes((512,)), np.uint8)
    blocks = [NewTensor(name="x", kind=kind, shape=(7, 512), parts=lambda: [content])]

    write_container(tmp_path / "x.gguf", {}, blocks)

    tensor = read_gguf(tmp_path / "x.gguf").tensors["x"]
    assert (tensor.kind, tensor.shape, tensor.tail.size) == (kind, (7, 512), 0)
    assert np.array_equal(tensor.data, content)


def test_the_scale_behind_i2_s_is_no_block(tmp_path: Path) -> None:
    content = bytes(range(64)) + struct.pack("<f", 0.5) + b"\xee" * 28
    path = write(tmp_path / "x.gguf", (36, (2, 128), content), NORM)

    tensor = read_gguf(path).tensors["0"]

    assert (tensor.kind, tensor.data.size) == (I2_S, 64)
    assert tensor.data.tobytes() + tensor.tail.tobytes() == content


def test_i2_s_without_the_bytes_of_its_scale_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", (36, (2, 128), bytes(64)), NORM)

    with pytest.raises(FormatError, match="is at byte 64: must be there once, and at 96"):
        read_gguf(path)
