"""`models verify` finds every single change of a file that some program would read.

Each mutation is the smallest there is: one number, one letter, one node. What is free, the name and the licence, is not
among them; nor is the golden record, which is what all else is compared with.
"""

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import gguf
import onnx
import pytest

from nanochat.bundle import Bundle
from nanochat.errors import NanochatError
from nanochat.export.directory import save_model
from nanochat.export.export import export_model
from nanochat.export.formats import FORMATS
from nanochat.export.gguf.container import read_gguf
from nanochat.export.verify import verify_model
from nanochat.proof.golden import with_golden
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3
from tests.parity.random_models import random_bundle

FREE = {"general.name", "general.license", "nanochat.golden"}
# Bytes of a scalar of each type, and how the last is written.
SCALARS = {
    gguf.GGUFValueType.UINT32: "<I",
    gguf.GGUFValueType.INT32: "<i",
    gguf.GGUFValueType.INT64: "<q",
    gguf.GGUFValueType.FLOAT32: "<f",
    gguf.GGUFValueType.FLOAT64: "<d",
    gguf.GGUFValueType.BOOL: "<?",
}


def models() -> dict[str, Bundle]:
    tokenizer = LibraryTokenizer(json.loads(llama_3().to_str()), Roles(chat_template="x"))
    others = dataclasses.replace(random_bundle(), tokenizer=tokenizer, golden=None)
    return {
        "stock": random_bundle(tie_embeddings=False),
        "own": random_bundle(num_streams=2),
        "others": with_golden(others),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of single file, whose folder says nothing of it."""
    folder = tmp_path_factory.mktemp("files")
    for name, model in models().items():
        export_model(model, folder / f"{name}.gguf", kind="gguf", verify=False)
    for target in ("ort", "standard"):
        options = FORMATS["onnx"].choose(target=target)
        export_model(models()["own"], folder / target, kind="onnx", options=options, verify=False)
        (folder / target / "nanochat.json").unlink()
    save_model(folder / "directory", models()["own"])
    return folder


def refuse(path: Path) -> None:
    with pytest.raises(NanochatError):
        verify_model(path, backend="reference")


def test_what_is_not_changed_passes(files: Path) -> None:
    paths = [
        "stock.gguf",
        "own.gguf",
        "others.gguf",
        "ort/model.onnx",
        "standard/model.onnx",
        "directory",
    ]

    found = [verify_model(files / path, backend="reference") for path in paths]

    assert all(one.golden is not None and one.digests for one in found)


# GGUF: every key.


@cache
def keys() -> list[tuple[str, str]]:
    """Each key of the files; they are known without writing one."""
    from nanochat.export.gguf.metadata import new_metadata

    found = []
    for name, architecture in (("stock", "qwen3"), ("own", "nanochat"), ("others", "qwen3")):
        model = models()[name]
        metadata = new_metadata(model, architecture, outtype="tq2_0")
        # The configuration is in all, under the same names; and the others differ by their tokenizer only.
        found += [
            (name, key)
            for key in metadata
            if key not in FREE
            and not (name == "own" and key.startswith("nanochat.config."))
            and not (name == "others" and "tokenizer" not in key)
        ]
    return found


def value_of(data: bytes, key: str) -> tuple[int, int]:
    """The type of a key's value, and where the value begins."""
    name = struct.pack("<Q", len(key)) + key.encode()
    start = data.index(name) + len(name)
    return struct.unpack_from("<I", data, start)[0], start + 4


def changed(data: bytes, key: str) -> bytes:
    """The file with the value of a key changed as little as its type lets it."""
    kind, start = value_of(data, key)
    if kind == gguf.GGUFValueType.ARRAY:
        kind, count = struct.unpack_from("<IQ", data, start)
        assert count, key
        start += 12
    if kind == gguf.GGUFValueType.STRING:
        # The last letter of the text, or of the first of several.
        (length,) = struct.unpack_from("<Q", data, start)
        place = start + 8 + length - 1
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    form = SCALARS[gguf.GGUFValueType(kind)]
    (value,) = struct.unpack_from(form, data, start)
    new = not value if form == "<?" else value * 1.01 + 1e-6 if form in "<f<d" else value + 1
    return data[:start] + struct.pack(form, new) + data[start + struct.calcsize(form) :]


@pytest.mark.parametrize(("name", "key"), keys(), ids=lambda word: str(word))
def test_a_changed_key_is_found(name: str, key: str, files: Path, tmp_path: Path) -> None:
    data = (files / f"{name}.gguf").read_bytes()

    (tmp_path / "x.gguf").write_bytes(changed(data, key))

    refuse(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "key", ["qwen3.rope.scaling.factor", "tokenizer.ggml.add_space_prefix", "split.count"]
)
def test_a_key_that_was_added_is_found(key: str, files: Path, tmp_path: Path) -> None:
    data = (files / "stock.gguf").read_bytes()
    (count,) = struct.unpack_from("<Q", data, 16)
    # Readers skip to the next multiple of the alignment; a text grows until the tensors begin where they did.
    entry = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", 8, 0)
    size = -len(entry) % 32
    entry = entry[:-8] + struct.pack("<Q", size) + b"x" * size

    (tmp_path / "x.gguf").write_bytes(
        data[:16] + struct.pack("<Q", count + 1) + data[24:24] + entry + data[24:]
    )

    assert key in read_gguf(tmp_path / "x.gguf").metadata
    refuse(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["stock", "own"])
def test_a_flipped_bit_of_a_tensor_is_found(name: str, files: Path, tmp_path: Path) -> None:
    data = bytearray((files / f"{name}.gguf").read_bytes())
    data[-100] ^= 1

    (tmp_path / "x.gguf").write_bytes(data)

    refuse(tmp_path / "x.gguf")


# ONNX: every attribute, constant, node and text.


Change = Callable[[onnx.ModelProto], object]


def attributes(model: onnx.ModelProto) -> Iterator[tuple[str, Change]]:
    """The first attribute of each name of each operator, and its smallest change."""
    seen = set()
    for number, node in enumerate(model.graph.node):
        for place, attribute in enumerate(node.attribute):
            name = f"{node.op_type}.{attribute.name}"
            if name not in seen and attribute.type != onnx.AttributeProto.GRAPH:
                seen.add(name)
                yield name, partial(change_attribute, number, place)


def change_attribute(number: int, place: int, model: onnx.ModelProto) -> None:
    attribute = model.graph.node[number].attribute[place]
    match attribute.type:
        case onnx.AttributeProto.INT:
            attribute.i += 1
        case onnx.AttributeProto.FLOAT:
            attribute.f *= 1.01
        case onnx.AttributeProto.INTS:
            attribute.ints[0] += 1
        case onnx.AttributeProto.STRING:
            attribute.s += b"x"
        case _:
            raise AssertionError(attribute.type)


def structure(model: onnx.ModelProto) -> Iterator[tuple[str, Change]]:
    """Changes of what is no attribute."""
    for kind in sorted({node.op_type for node in model.graph.node}):
        yield f"operator {kind}", partial(rename, kind)
    yield "opset", lambda m: setattr(m.opset_import[0], "version", m.opset_import[0].version + 1)
    yield "order", lambda m: m.graph.node.insert(0, m.graph.node.pop())
    yield "input", lambda m: setattr(m.graph.input[0], "name", "other")
    yield "output", lambda m: m.graph.output[0].type.tensor_type.shape.dim.pop()
    for entry in model.metadata_props:
        if entry.key not in ("name", "golden"):
            yield f"metadata {entry.key}", partial(spoil, entry.key)
    types: dict[int, int] = {}
    for number, tensor in enumerate(model.graph.initializer):
        types.setdefault(tensor.data_type, number)
    for data_type, number in types.items():
        yield f"constant {data_type}", partial(flip, number)


def rename(kind: str, model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == kind)
    node.op_type += "2"


def spoil(key: str, model: onnx.ModelProto) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == key)
    entry.value += " "


def flip(number: int, model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[number]
    data = bytearray(tensor.raw_data)
    data[0] ^= 1
    tensor.raw_data = bytes(data)


@cache
def graph(target: str) -> onnx.ModelProto:
    from nanochat.export.onnx.write import onnx_model

    return onnx_model(models()["own"], target=target)  # type: ignore[arg-type]  # one of the two


GRAPHS = [
    (target, name)
    for target in ("ort", "standard")
    for name, _ in (*attributes(graph(target)), *structure(graph(target)))
]


@pytest.mark.parametrize(("target", "name"), GRAPHS, ids=lambda word: str(word))
def test_a_changed_graph_is_found(target: str, name: str, files: Path, tmp_path: Path) -> None:
    for file in (files / target).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = onnx.load(tmp_path / "model.onnx")
    changes = dict((*attributes(graph(target)), *structure(graph(target))))

    changes[name](model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    refuse(tmp_path / "model.onnx")


def merges(text: str) -> str:
    """The last merge makes another piece first."""
    place = text.rindex('"merges"')
    return text[:place] + text[place:].replace("e", "E", 2)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"<|end|>"', '"<|END|>"'),
        lambda text: text.replace('"!"', '"@"'),
        merges,
    ],
    ids=["special", "vocabulary", "merges"],
)
def test_a_changed_tokenizer_beside_a_graph_is_found(
    edit: Callable[[str], str], files: Path, tmp_path: Path
) -> None:
    for file in (files / "ort").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    changed_text = edit(text)

    path.write_text(changed_text, encoding="utf-8")

    assert changed_text != text
    refuse(tmp_path / "model.onnx")


# A directory: every file.


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_changed_file_of_a_directory_is_found(name: str, files: Path, tmp_path: Path) -> None:
    for file in (files / "directory").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1

    (tmp_path / name).write_bytes(data)

    refuse(tmp_path)


def test_there_are_many() -> None:
    assert len(keys()) + len(GRAPHS) >= 60


def test_a_record_of_the_first_format_is_read_and_says_less(tmp_path: Path) -> None:
    source = with_golden(models()["own"])
    assert source.golden is not None
    old = dataclasses.replace(source.golden, config="", tokenizer="")
    save_model(tmp_path / "x", dataclasses.replace(source, golden=old))
    path = tmp_path / "x" / "nanochat.json"
    text = path.read_text()
    for field in ('"config":"",', '"tokenizer":"",'):
        assert field in text
    path.write_text(
        text.replace('"golden":{"format":2', '"golden":{"format":1').replace(
            ',"config":"","tokenizer":"","graph":""', ""
        )
    )

    verified = verify_model(tmp_path / "x", backend="reference")

    assert verified.golden == pytest.approx(0, abs=1e-5)
    assert not verified.digests
