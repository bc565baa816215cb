"""No file, however it was damaged or forged, makes a reader do more than refuse it, in little memory and time."""

import copy
import json
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat import checkpoint
from nanochat.blocks.plain import plain
from nanochat.bundle import Bundle, golden_from_json
from nanochat.config import ModelConfig
from nanochat.errors import NanochatError
from nanochat.export.directory import save_model
from nanochat.export.formats import load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.write import write_gguf
from nanochat.export.stock.mlx import load_mlx, write_mlx
from nanochat.export.stock.transformers import load_transformers, write_transformers
from nanochat.files import read_bytes
from nanochat.init import freeze, init
from nanochat.proof.golden import record, with_golden
from nanochat.proof.manifest import check_files, read_manifest, write_manifest
from nanochat.tensors import read_tensors, write_tensors
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import named_leaves
from tests.core import foreign_tokenizers
from tests.export import foreign_ggufs, foreign_models

UNHURRIED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], database=None
)
ROOT = Path(__file__).parents[2]
# The files have less than half a megabyte.
MOST_BYTES = 48 * 2**20
# Of the processor; readers take milliseconds.
MOST_SECONDS = 10

TOKENIZER = Tokenizer.train(["to be or not to be, that is the question"] * 3, vocab_size=270)
CONFIG = ModelConfig(
    vocab_size=270,
    width=256,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=128,
    ffn_width=256,
    num_streams=1,
    context_length=16,
)
SOURCE = with_golden(
    Bundle(
        name="small",
        config=CONFIG,
        weights=freeze(init(CONFIG, np.random.default_rng(0))),
        tokenizer=TOKENIZER,
        generation={"eos_token_id": [1, 6]},
    )
)

NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    31,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
VALUES: list[Any] = [
    *[
        None,
        True,
        False,
        -1,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        -0.0,
        *NUMBERS,
        10**25,
        10**400,
    ],
    *[
        "",
        "x",
        "x" * 5000,
        "\0",
        "\ud800",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "F64",
        "F32",
    ],
    *[[], {}, [[]], [0] * 500, [2**63, 2**63], {"a": {}}, [1, "x", None]],
]
BITS = [
    0x7F7FFFFF,
    0x7FC00000,
    0x7F800000,
    0xFF800000,
    0,
    0xFFFFFFFF,
    0x80808080,
    0x7C007C00,
    1,
    0x80000000,
]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file that is mutated, in a folder that `make` fills, and what reads it."""

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def read_golden(folder: Path) -> None:
    golden_from_json(
        read_bytes(folder / "golden", limit=2**20).decode("utf-8", "replace"), "golden"
    )


def load_gguf_parts(folder: Path) -> None:
    for _, leaf in named_leaves(load(folder / "x.gguf").weights):
        # Linears are checked when they are read.
        plain(leaf)


def read_whole_manifest(folder: Path) -> None:
    manifest = read_manifest(folder)
    if manifest is not None:
        check_files(folder, manifest)


def make_own(folder: Path) -> None:
    save_model(folder, SOURCE)


def make_shards(folder: Path) -> None:
    checkpoint.save(folder, CONFIG, SOURCE.weights, max_shard_bytes=40_000)


def make_mlx(folder: Path) -> None:
    write_mlx(folder, SOURCE)
    write_manifest(folder, SOURCE, kind="mlx")


def make_transformers(folder: Path) -> None:
    write_transformers(folder, SOURCE)
    write_manifest(folder, SOURCE, kind="transformers")


def make_gguf(folder: Path) -> None:
    write_gguf(folder / "x.gguf", SOURCE)


def make_bitnet(folder: Path) -> None:
    model = foreign_models.build("autobitlinear packed")
    foreign_models.save(model, "autobitlinear packed", folder)
    foreign_tokenizers.write_llama_3(folder)


def make_foreign_gguf(folder: Path) -> None:
    foreign_ggufs.write(folder / "x.gguf", foreign_ggufs.Case(architecture="qwen3"))


TENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
CASES = {
    "gguf": Case(file="x.gguf", make=make_gguf, read=lambda f: load(f / "x.gguf")),
    "gguf golden": Case(file="x.gguf", make=make_gguf, read=lambda f: load(f / "x.gguf").golden),
    "foreign gguf": Case(file="x.gguf", make=make_foreign_gguf, read=load_gguf_parts),
    "foreign config": Case(file="config.json", make=make_bitnet, read=load),
    "foreign tensors": Case(file=TENSORS, make=make_bitnet, read=load),
    "foreign tokenizer": Case(file="tokenizer.json", make=make_bitnet, read=load),
    "foreign settings": Case(file="tokenizer_config.json", make=make_bitnet, read=load),
    "tensors": Case(file=TENSORS, make=make_own, read=checkpoint.load),
    "config": Case(file="config.json", make=make_own, read=load),
    "generation": Case(file="generation_config.json", make=make_own, read=load),
    "index": Case(file=INDEX, make=make_shards, read=checkpoint.load),
    "tokenizer": Case(file="tokenizer.json", make=TOKENIZER.save, read=Tokenizer.load),
    "golden": Case(
        file="golden",
        make=lambda f: (f / "golden").write_text(record(SOURCE).to_json()),
        read=read_golden,
    ),
    "manifest": Case(file="nanochat.json", make=make_own, read=read_whole_manifest),
    "mlx": Case(file=TENSORS, make=make_mlx, read=lambda f: load_mlx(f, CONFIG)),
    "mlx manifest": Case(file="nanochat.json", make=make_mlx, read=load),
    "transformers": Case(
        file=TENSORS, make=make_transformers, read=lambda f: load_transformers(f, CONFIG)
    ),
    "transformers manifest": Case(file="nanochat.json", make=make_transformers, read=load),
}
JSON_CASES = [name for name, case in CASES.items() if not case.file.endswith("gguf")]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepare(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=JSON_CASES)
def json_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepare(request.param, tmp_path_factory)


def prepare(name: str, factory: pytest.TempPathFactory) -> tuple[Case, Path, bytes]:
    """A case, a folder whose file may be overwritten, and what stands in that file."""
    case, folder = CASES[name], factory.mktemp("hostile")
    case.make(folder)
    content = (folder / case.file).read_bytes()
    case.read(folder)
    return case, folder, content


def refuse_or_read(read: Callable[[], object]) -> None:
    """Nothing but our own errors, and neither more memory nor more time than a reader may take."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with suppress(NanochatError):
            read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert time.process_time() - start < MOST_SECONDS


def mutate(data: st.DataObject, content: bytes) -> bytes:
    """Cut, change, repeat, remove, or forge a number; mostly near the beginning, where what describes the rest is."""
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, min(3000, len(content))) | st.integers(0, len(content)))
        match data.draw(st.sampled_from(["cut", "bytes", "number", "repeat", "remove"])):
            case "cut":
                content = content[:position]
            case "bytes":
                new = data.draw(st.binary(max_size=9))
                content = content[:position] + new + content[position + len(new) :]
            case "number":
                form = data.draw(st.sampled_from(["<Q", "<I"]))
                number = data.draw(st.sampled_from(NUMBERS)) % 2 ** (8 * struct.calcsize(form))
                new = struct.pack(form, number)
                content = content[:position] + new + content[position + len(new) :]
            case "repeat":
                end = position + data.draw(st.integers(1, 200))
                content = content[:end] + content[position:]
            case "remove":
                end = position + data.draw(st.integers(1, 200))
                content = content[:position] + content[end:]
    return content


def forge(data: st.DataObject, value: Any) -> Any:
    """Replace, remove or add something somewhere in a JSON value."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 4)) == 0:
        return copy.deepcopy(data.draw(st.sampled_from(VALUES)))
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = data.draw(st.sampled_from(keys))
    changed: Any = copy.copy(value)
    match data.draw(st.sampled_from(["change", "change", "change", "remove", "add"])):
        case "change":
            changed[key] = forge(data, value[key])
        case "remove":
            del changed[key]
        case "add" if isinstance(changed, dict):
            changed[data.draw(st.sampled_from(["x", "", "../x", "\0", "layers.9.norm"]))] = value[
                key
            ]
        case "add":
            changed.append(copy.deepcopy(data.draw(st.sampled_from(VALUES))))
    return changed


def write_forged(data: st.DataObject, case: Case, content: bytes) -> bytes:
    """Forge a file of JSON, or the header of one of tensors."""
    if case.file != TENSORS:
        return json.dumps(forge(data, json.loads(content))).encode()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(forge(data, json.loads(content[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


@UNHURRIED
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read(data: st.DataObject, case: Any) -> None:
    reader, folder, content = case
    (folder / reader.file).write_bytes(mutate(data, content))

    refuse_or_read(lambda: reader.read(folder))


@UNHURRIED
@given(data=st.data())
def test_forged_json_is_refused_or_read(data: st.DataObject, json_case: Any) -> None:
    reader, folder, content = json_case
    (folder / reader.file).write_bytes(write_forged(data, reader, content))

    refuse_or_read(lambda: reader.read(folder))


@pytest.mark.parametrize("name", ["tensors", "mlx", "transformers"])
@UNHURRIED
@given(data=st.data())
def test_forged_numbers_are_refused_or_legal(
    data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case, folder, _ = prepared(name, tmp_path_factory)
    tensors = {key: t.array().copy() for key, t in read_tensors(folder / "whole").items()}
    for _ in range(data.draw(st.integers(1, 3))):
        array = tensors[data.draw(st.sampled_from(sorted(tensors)))].reshape(-1)
        number = np.array([data.draw(st.sampled_from(BITS))], np.uint32).view(np.uint8)
        place = data.draw(st.integers(0, array.size - 1))
        array[place : place + 1] = number[: array.itemsize].view(array.dtype)
    write_tensors(folder / TENSORS, tensors, metadata={})

    with suppress(NanochatError):
        # All three give a pair.
        found: Any = case.read(folder)
        for leaf_name, leaf in named_leaves(found[1]):
            checkpoint.require_legal(leaf_name, leaf)


PREPARED: dict[str, tuple[Case, Path, bytes]] = {}


def prepared(name: str, factory: pytest.TempPathFactory) -> tuple[Case, Path, bytes]:
    """`prepare`, once; ``whole`` is the file as it was."""
    if name not in PREPARED:
        PREPARED[name] = prepare(name, factory)
        _, folder, content = PREPARED[name]
        (folder / "whole").write_bytes(content)
    return PREPARED[name]


TEXT = st.sampled_from([b"a", b"b", b"general.alignment", b"\xff", b"x" * 300])
COUNT = st.sampled_from(NUMBERS)


@st.composite
def gguf_value(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 13))
    body = draw(st.binary(max_size=16))
    if kind == 9:
        inner, count = draw(st.integers(0, 13)), draw(st.integers(0, 3) | COUNT)
        body = struct.pack("<IQ", inner, count) + body
    elif kind == 8:
        body = struct.pack("<Q", draw(st.integers(0, 20) | COUNT)) + body
    return struct.pack("<I", kind) + body


@st.composite
def gguf_tensor(draw: st.DrawFn) -> bytes:
    shape = draw(st.lists(st.integers(0, 300) | COUNT, max_size=5))
    count = draw(st.just(len(shape)) | COUNT.map(lambda n: n % 2**32))
    kind = draw(st.sampled_from([0, 1, 8, 34, 35, 42, 30, 99]))
    offset = draw(st.sampled_from([0, 0, 32, 64, 1, 2**63]))
    form = f"<I{len(shape)}QIQ"
    return struct.pack(form, count, *shape, kind, offset)


@settings(UNHURRIED, max_examples=200)
@given(
    values=st.lists(st.tuples(TEXT, gguf_value()), max_size=3),
    tensors=st.lists(st.tuples(TEXT, gguf_tensor()), max_size=3),
    counts=st.none() | st.tuples(COUNT, COUNT),
    tail=st.integers(0, 400),
)
def test_a_forged_gguf_is_refused_or_read(
    values: list[tuple[bytes, bytes]],
    tensors: list[tuple[bytes, bytes]],
    counts: tuple[int, int] | None,
    tail: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "forged.gguf"
    num_tensors, num_values = counts or (len(tensors), len(values))
    entries = [struct.pack("<Q", len(name)) + name + body for name, body in [*values, *tensors]]
    head = struct.pack("<4sIQQ", b"GGUF", 3, num_tensors, num_values)
    path.write_bytes(head + b"".join(entries) + bytes(tail))

    refuse_or_read(lambda: read_gguf(path))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nanochat.errors import SaveError
from nanochat.export.stock.mlx import write_mlx
from nanochat.export.stock.transformers import write_transformers
from tests.export.stock_models import make_bundle
write = {"mlx": write_mlx, "transformers": write_transformers}[sys.argv[1]]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write(Path(sys.argv[2]), make_bundle("qk-norm"))
except SaveError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
@pytest.mark.parametrize("kind", ["mlx", "transformers"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "old"])
def test_a_full_disk_leaves_what_was_there(kind: str, exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if exists:
        {"mlx": make_mlx, "transformers": make_transformers}[kind](folder)
    before = {path.name: path.read_bytes() for path in folder.rglob("*")} if exists else {}

    command = [sys.executable, "-c", FULL_DISK, kind, str(folder)]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert said.startswith(f"cannot write {folder}: ")
    assert {path.name: path.read_bytes() for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if exists else [])
