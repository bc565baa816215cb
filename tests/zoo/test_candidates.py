"""Of the formats that a repository holds, the best for the backend is opened, and only its files are needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.export.formats import candidates
from nanochat.zoo.candidates import choose, reason, require_inside, require_model

OWN = ["config.json", "model.safetensors", "nanochat.json", "tokenizer.json", "README.md"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
EVERYTHING = [
    *OWN,
    "x-TQ2_0.gguf",
    "x-TQ1_0.gguf",
    "x-F16.gguf",
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/genai_config.json",
    "onnx/tokenizer.json",
    "mlx/config.json",
    "mlx/model.safetensors",
    "hf/config.json",
    *(f"hf/{name}" for name in SHARDS),
    "hf/model.safetensors.index.json",
    "web/model.onnx",
    "web/model.onnx.data",
    "web/model.float32.onnx",
    "web/page.json",
    "web/nanochat.json",
    "web/runtime/ort.wasm",
    "web/tokenizer.json",
    ".gitattributes",
    "run.py",
    "pytorch_model.bin",
]


def chosen(names: list[str], *, backend: str = "numba", part: str = "") -> str:
    return choose(candidates(names), backend=backend, part=part, where="org/name").place


@pytest.mark.parametrize(
    ("backend", "names", "place"),
    [
        ("numba", EVERYTHING, ""),
        ("torch", EVERYTHING, ""),
        ("onnx", EVERYTHING, "onnx"),
        ("onnx", [n for n in EVERYTHING if not n.startswith("onnx/")], "web/model.onnx"),
        ("onnx", OWN, ""),
        ("numba", [n for n in EVERYTHING if n not in OWN], "x-TQ2_0.gguf"),
        ("mlx", [n for n in EVERYTHING if n.startswith(("mlx/", "hf/", "onnx/"))], "mlx"),
        ("numba", [n for n in EVERYTHING if n.startswith(("hf/", "onnx/"))], "hf"),
        ("numba", [n for n in EVERYTHING if n.startswith(("web/", "onnx/"))], "onnx"),
        ("numba", ["model.onnx", "tokenizer.json"], ""),
        ("numba", ["a.gguf"], "a.gguf"),
        ("numba", ["x-TQ1_0.gguf", "x-TQ2_0.gguf", "deep/x-TQ2_0.gguf"], "x-TQ2_0.gguf"),
        ("numba", ["x-F16.gguf", "x-Q2_0.gguf"], "x-Q2_0.gguf"),
        ("numba", ["x-F16.gguf", "x-PTQ1_0.gguf", "x-PQ2_0.gguf"], "x-PQ2_0.gguf"),
        ("numba", ["x-F16.gguf", "x-Q2_0_g64.gguf", "x-Q2_0.gguf"], "x-Q2_0.gguf"),
        ("numba", ["x-F16.gguf", "x-Q2_g64.gguf"], "x-Q2_g64.gguf"),
        ("numba", ["x-F16.gguf", "x-Q1_0.gguf"], "x-Q1_0.gguf"),
        ("numba", ["x-F16.gguf", "x-i2_s.gguf"], "x-i2_s.gguf"),
    ],
)
def test_the_best_format_for_the_backend_is_opened(
    backend: str, names: list[str], place: str
) -> None:
    assert chosen(names, backend=backend) == place


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("gguf", "x-TQ2_0.gguf"),
        ("TQ1_0", "x-TQ1_0.gguf"),
        ("tq1_0", "x-TQ1_0.gguf"),
        ("x-F16.gguf", "x-F16.gguf"),
        ("onnx", "onnx"),
        ("onnx/", "onnx"),
        ("mlx", "mlx"),
        ("hf", "hf"),
        ("web", "web/model.onnx"),
        ("safetensors", ""),
    ],
)
def test_a_part_is_a_format_a_folder_a_file_or_a_type(part: str, place: str) -> None:
    assert chosen(EVERYTHING, part=part) == place


def test_a_part_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no 'Q4_K_M': it holds .*x-TQ2_0\.gguf"):
        chosen(EVERYTHING, part="Q4_K_M")


def test_between_equals_the_user_chooses() -> None:
    with pytest.raises(ModelNotFoundError, match=r"a\.gguf and b\.gguf, .* org/name:a\.gguf"):
        chosen(["a.gguf", "b.gguf"])


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("", set(OWN)),
        ("x-TQ2_0.gguf", {"x-TQ2_0.gguf"}),
        ("onnx", {n for n in EVERYTHING if n.startswith("onnx/")}),
        ("hf", {n for n in EVERYTHING if n.startswith("hf/")}),
        (
            "web/model.onnx",
            {f"web/{n}" for n in ("model.onnx", "model.onnx.data", "tokenizer.json")},
        ),
    ],
)
def test_only_what_is_needed_is_fetched(place: str, files: set[str]) -> None:
    (model,) = (c for c in candidates(EVERYTHING) if c.place == place)

    assert set(model.files) == files


def test_graphs_and_tensors_in_one_folder_are_two_models() -> None:
    names = ["config.json", "model.safetensors", "model.onnx", "tokenizer.json"]

    assert chosen(names, backend="onnx") == "model.onnx"
    assert chosen(names) == ""


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["README.md"], "check the name"),
        ([], "check the name"),
        (["config.json", *SHARDS], "its tensors are in model-00001-of-00002.safetensors, and a"),
        (["config.json", "pytorch_model.bin"], "pickles, which can run code"),
        (
            ["config.json", "model.fp16.safetensors"],
            "its tensors are in model.fp16.safetensors, and",
        ),
        (["config.json", "x/adapter.safetensors", "y.bin"], "its tensors are in x/adapter.safe"),
        (["x-00002-of-00002.gguf"], "check the name"),
        (["model.safetensors"], "check the name"),
    ],
)
def test_a_repository_without_a_model_says_why(names: list[str], reason: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"org/name cannot be opened: .*{reason}"):
        require_model(candidates(names), names, where="org/name")


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a\\..\\b", "C:/x", "a\0b", "", "a/"],
)
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="do not use this repository"):
        require_inside(["config.json", name], where="org/name")


@given(st.lists(st.text(max_size=30), max_size=8), st.text(max_size=10))
def test_any_listing_gives_a_choice_or_a_sentence(names: list[str], part: str) -> None:
    found = candidates(names)
    try:
        choice = choose(found, backend="numba", part=part, where="org/name")
    except ModelNotFoundError:
        return

    assert set(choice.files) <= set(names)


@pytest.mark.parametrize(
    ("backend", "names", "why"),
    [
        ("numba", ["a.gguf"], "it is the only one"),
        ("onnx", [*OWN, "onnx/model.onnx"], "backend onnx runs graphs"),
        ("numba", [*OWN, "x-TQ2_0.gguf"], "safetensors comes before gguf"),
        ("numba", ["x-TQ2_0.gguf", "deep/x-TQ2_0.gguf"], "it is the outermost"),
        ("numba", ["x-PQ2_0.gguf", "x-F16.gguf"], "its type of tensors, as the names tell"),
    ],
)
def test_why_one_of_several_is_taken_is_told(backend: str, names: list[str], why: str) -> None:
    found = candidates(names)
    taken = choose(found, backend=backend, part="", where="org/name")

    assert reason(found, taken, backend=backend).startswith(why)
