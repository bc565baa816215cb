"""A writer leaves a whole file or the old one; a reader refuses what is no file, too large or not JSON."""

import math
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from nanochat.errors import FormatError, SaveError
from nanochat.files import (
    atomic_directory,
    atomic_file,
    atomic_write,
    exists,
    parse_json,
    read_bytes,
)
from nanochat.tensors import read_tensors, write_tensors

ROOT = Path(__file__).parents[2]

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nanochat.errors import SaveError
from nanochat.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    atomic_write(Path(sys.argv[1]), bytes(8192))
except SaveError as error:
    print(error)
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write_half_a_file(path: Path) -> None:
    with atomic_file(path) as new:
        new.write_bytes(b"half")
        raise KeyError


def write_half_a_directory(path: Path) -> None:
    with atomic_directory(path) as new:
        (new / "a").write_bytes(b"new")
        raise OSError(28, "No space left on device")


def test_a_write_replaces_the_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"

    atomic_write(path, b"old")
    atomic_write(path, b"new")

    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")

    atomic_write(tmp_path / "atomic", b"")

    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")

    atomic_write(tmp_path / "link", b"new")

    assert (tmp_path / "target").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    with pytest.raises(KeyError):
        write_half_a_file(path)

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits on file sizes are POSIX only")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    command = [sys.executable, "-c", FULL_DISK, str(path)]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert said == f"cannot write {path}: File too large; free space or pass another path\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as new:
        (new / "a").write_bytes(b"1")
        assert not (tmp_path / "model").exists()
        (new / "b").write_bytes(b"2")

    assert names(tmp_path / "model") == ["a", "b"]
    assert names(tmp_path) == ["model"]


def test_a_directory_keeps_the_files_that_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "kept").write_bytes(b"kept")

    with atomic_directory(tmp_path) as new:
        (new / "a").write_bytes(b"new")

    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "kept"]


def test_a_failed_directory_leaves_all_old_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    with pytest.raises(SaveError, match="No space left"):
        write_half_a_directory(tmp_path)

    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


TENSORS: dict[str, NDArray[np.generic]] = {
    "byte": np.arange(3, dtype=np.uint8),
    "code": np.arange(-2, 3, dtype=np.int8),
    "scale": np.ones((2, 1), np.float16),
    "word": np.arange(4, dtype=np.uint32).reshape(2, 2),
    "ünit": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2],
    "empty": np.zeros((0, 3), np.float32),
}


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS, metadata={"format": "pt"})

    tensors = read_tensors(tmp_path / "x")

    assert tensors.keys() == TENSORS.keys()
    for key, tensor in tensors.items():
        tensor.verify()
        assert tensor.checksum is not None
        assert tensor.array().dtype == TENSORS[key].dtype
        assert np.array_equal(tensor.array(), TENSORS[key])


def test_a_file_of_tensors_has_the_library_s_bytes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", TENSORS, metadata={})
    with safe_open(tmp_path / "ours", "np") as file:
        metadata = file.metadata()

    contiguous = {key: np.ascontiguousarray(array) for key, array in TENSORS.items()}
    save_file(contiguous, tmp_path / "library", metadata=metadata)

    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


def test_the_library_reads_further_metadata(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS, metadata={"format": "mlx"})

    with safe_open(tmp_path / "x", "np") as file:
        assert file.metadata()["format"] == "mlx"


def test_a_path_under_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SaveError, match="pass another path"):
        atomic_write(tmp_path / "file" / "below", b"")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(FormatError, match="not a regular file"):
        read_bytes(tmp_path / "pipe", limit=10)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")

    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(FormatError, match="5 bytes, over the limit of 4"):
        read_bytes(path, limit=4)


def test_a_small_file_is_not_given_the_memory_of_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    tracemalloc.start()
    read_bytes(tmp_path / "file", limit=2**26)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**20


@pytest.mark.parametrize("name", ["missing", "a\0b", "x" * 300], ids=["missing", "null", "long"])
def test_a_name_without_a_file_is_a_format_error(tmp_path: Path, name: str) -> None:
    assert not exists(tmp_path / name)
    with pytest.raises(FormatError):
        read_bytes(tmp_path / name, limit=1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff{}",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
    ],
    ids=["empty", "cut", "list", "bytes", "deep", "deeper"],
)
def test_what_is_not_one_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        parse_json(data, "config.json")


def test_a_json_object_is_returned() -> None:
    assert parse_json(b'{"a": [1, -2, 0.5, null]}', "x") == {"a": [1, -2, 0.5, None]}


def test_of_a_repeated_key_the_last_value_counts() -> None:
    assert parse_json(b'{"b": {"a": 1, "a": 2}, "b": {"a": 3, "a": 4}}', "x") == {"b": {"a": 4}}


@pytest.mark.parametrize(
    ("digits", "value"),
    [
        (str(2**63), 2**63),
        (str(2**64 - 1), 2**64 - 1),
        (str(-(2**63)), -(2**63)),
        (str(int(1e30)), 1e30),
        ("9" * 400, math.inf),
        ("-" + "9" * 1_000_000, -math.inf),
    ],
    ids=["63 bits", "64 bits", "negative", "no limit of transformers", "no float", "a megabyte"],
)
def test_a_number_of_any_size_is_read(digits: str, value: float) -> None:
    found = parse_json(f'{{"a": {digits}}}'.encode(), "x")["a"]

    assert found == value
    assert type(found) is type(value)
