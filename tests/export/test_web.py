"""The folder of a page has all that it needs, and graphs that compute the model wherever they run."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.bundle import Bundle
from nanochat.errors import ConfigError, FormatError
from nanochat.export.onnx.forms import packed_form
from nanochat.export.onnx.leaves import BLOCK, Parameter
from nanochat.export.onnx.standard import StandardOps
from nanochat.export.verify import verify_model
from nanochat.export.web import write as web
from nanochat.export.web.write import write_web
from nanochat.proof.manifest import read_manifest
from nanochat.weights import Ternary
from nanochat.zoo.hub import resolve
from tests.export.pages import tiny, write_page

ROWS, COLUMNS = 24, 2 * BLOCK


def unchanged(model: onnx.ModelProto) -> None:
    """Leave the graph as it is: its weights are widened."""
    assert model.graph.node


FORMS = {"packed": packed_form, "widened": unchanged}


@pytest.fixture(scope="module")
def source() -> Bundle:
    return tiny()


@pytest.fixture(scope="module")
def folder(source: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("web") / "page", source)


def product() -> tuple[onnx.ModelProto, NDArray[np.int8]]:
    """Return a graph of two products of the same input with random codes, times a half, and the codes."""
    generator = np.random.default_rng(0)
    codes = generator.integers(-1, 2, (ROWS, COLUMNS)).astype(np.int8)
    leaf = Ternary(
        packed=ternary.pack(codes),
        scales=np.full((ROWS, 1), 0.5, np.float16),
        columns=COLUMNS,
        activation_block=BLOCK,
    )
    ops = StandardOps()
    x = ops.graph.input("x", ("tokens", COLUMNS), dtype=np.float32)
    ops.graph.output(ops.project(x, Parameter(name="first", leaf=leaf))[0], "y")
    ops.graph.output(ops.project(x, Parameter(name="second", leaf=leaf))[0], "z")
    return ops.graph.model("product", version="0", metadata={}), codes


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    file = model.SerializeToString()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {"x": x, "input_ids": np.zeros((1, 1), np.int64)}
    return np.asarray(session.run(["z"], feed)[0])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form_multiplies_what_the_contract_rounds(
    form: Callable[[onnx.ModelProto], None],
) -> None:
    model, codes = product()
    x = np.random.default_rng(1).standard_normal((5, COLUMNS), np.float32)
    # A block of zeros, one that is nearly so, ties, and one number that is larger than all others.
    x[1] = 0
    x[2, :BLOCK] *= np.float32(1e-38)
    x[3, :BLOCK] = np.linspace(-127, 127, BLOCK, dtype=np.float32).round() / 2
    x[4, 3] = 1e6

    form(model)

    rounded, scales = ternary.quantize_activations(x, block=BLOCK)
    values = rounded * np.repeat(scales, BLOCK, axis=1)
    expected = values @ (codes * np.float32(0.5)).T
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_input_of_two_products_is_rounded_once(
    form: Callable[[onnx.ModelProto], None],
) -> None:
    model, _ = product()

    form(model)

    assert [node.op_type for node in model.graph.node].count("Round") == 1


def test_the_page_and_its_parts_name_no_other_host(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix in (".html", ".js", ".css"):
            assert not re.search(r"https?:|//[a-z]+\.", path.read_text(encoding="utf-8")), path.name


def test_what_others_wrote_has_its_licence_beside_it(folder: Path) -> None:
    for path in (folder / "runtime").iterdir():
        assert "copyright" in (path / "LICENSE").read_text(encoding="utf-8").lower(), path.name


def test_the_graphs_share_one_file_of_packed_weights(folder: Path) -> None:
    graphs = sorted(folder.glob("*.onnx"))
    data = (folder / "model.onnx.data").stat().st_size

    assert [path.name for path in graphs] == [
        "model.2-bit.onnx",
        "model.float32.onnx",
        "model.onnx",
    ]
    # A table of a byte a number, ternary codes of a quarter, scales, and less than as much of everything else.
    assert data < 1.2 * (4096 * 256 + 6 * 256 * (256 * 3 + 3 * 768) / 4 + 6 * 2048 * 4 * 8)
    assert sum(path.stat().st_size for path in graphs) < data / 4


def test_a_tokenizer_of_another_program_is_refused(source: Bundle, tmp_path: Path) -> None:
    other = dataclasses.replace(source, tokenizer=object())  # type: ignore[arg-type]  # no TextCodec

    with pytest.raises(ConfigError, match="another program's tokenizer"):
        write_web(tmp_path, other)


def test_a_model_too_large_for_a_page_is_refused(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_LARGEST_BYTES", 2**20)

    with pytest.raises(ConfigError, match="a page has room for 1048576"):
        write_web(tmp_path, source)


def test_progress_is_told_to_the_end(source: Bundle, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    write_web(tmp_path, source, progress=lambda done, of: told.append((done, of)))

    assert told == [(number + 1, len(told)) for number in range(len(told))]
    assert json.loads((tmp_path / "page.json").read_text())["runtime"] == "onnxruntime-web 1.30.0"


def test_a_page_is_verified_with_all_of_its_files(folder: Path, tmp_path: Path) -> None:
    verified = verify_model(resolve(str(folder)))

    manifest = read_manifest(folder)
    assert manifest is not None
    assert verified.files == len(manifest.files) > 20

    page = shutil.copytree(folder, tmp_path / "page")
    (page / "page.js").write_text("alert()")
    with pytest.raises(FormatError, match=r"page\.js: 7 bytes that are not the"):
        verify_model(resolve(str(page)))
