"""A model is loaded, run, scored and saved through one class, and says what it is."""

import dataclasses
import gc
import logging
import math
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from nanochat import backends, memory
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.cost import tensor_classes
from nanochat.errors import (
    BackendError,
    ConfigError,
    ContextLengthError,
    FormatError,
    InputError,
    MemoryShortageError,
    ModelNotFoundError,
)
from nanochat.export.export import export_model
from nanochat.export.format import ModelFiles
from nanochat.export.formats import detect, format_named, load
from nanochat.lm import Model, from_pretrained
from nanochat.ops import Storage
from nanochat.tensors import save_tensors
from nanochat.text.chat import Message
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Int8, Stored, map_leaves
from tests.parity.backends import backends_under_test
from tests.parity.random_models import (
    answering_bundle,
    random_bundle,
    random_config,
    random_model,
    random_tokenizer,
    silent_weights,
)
from tests.zoo.hub_client import HubClient

ROOT = Path(__file__).parents[2]

# The card is the only file that does not fit.
FULL_DISK = """
import resource, signal, sys
import numpy as np
from nanochat.errors import SaveError
from nanochat.init import freeze, init
from nanochat.bundle import Bundle
from nanochat.export.directory import save_model
from tests.parity.random_models import random_config, random_tokenizer
config = random_config()
weights = freeze(init(config, np.random.default_rng(5)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**23, 2**23))
try:
    source = Bundle(
        name="random", config=config, weights=weights, tokenizer=random_tokenizer(), generation={},
        card=bytes(2**23 + 1),
    )
    save_model(sys.argv[1], source)
except SaveError as error:
    print(error)
"""

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def copied_bytes(path: Path) -> int:
    files = ModelFiles(path)
    return detect(files).copied_bytes(files)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model()


@pytest.fixture
def directory(model: Model, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_generate_returns_what_follows_the_prompt(model: Model) -> None:
    text = model.generate("fn main", max_tokens=8)

    ids = model.encode_prompt("fn main")
    assert text == model.tokenizer.decode(p.token for p in model.pieces([ids], max_tokens=8))


def test_generate_of_a_list_returns_a_list_of_the_same_texts(model: Model) -> None:
    texts = model.generate(["fn main", "to be"], max_tokens=8)

    assert texts == [model.generate(text, max_tokens=8) for text in ("fn main", "to be")]


def test_without_options_generation_is_greedy(model: Model) -> None:
    assert model.generate("to be") == model.generate("to be", temperature=0.0, seed=7)


def test_a_stream_adds_up_to_the_generated_text(model: Model) -> None:
    parts = list(model.stream("to be", temperature=1.0, seed=3))

    assert "".join(parts) == model.generate("to be", temperature=1.0, seed=3)
    assert "" not in parts


def test_prompts_may_be_tokens_and_come_in_any_iterable(model: Model) -> None:
    ids = model.encode_prompt("to be")
    text = model.generate("to be", max_tokens=8)

    assert model.generate(ids, max_tokens=8) == text
    array: Any = np.array([ids, ids])
    word: Any = np.array("to be")
    assert model.generate(word, max_tokens=8) == text
    assert model.generate(array[0], max_tokens=8) == text
    for prompts in (("to be", "to be"), iter(["to be"] * 2), [ids, ids], array):
        assert model.generate(prompts, max_tokens=8) == [text, text]


def test_one_prompt_with_n_gives_a_list(model: Model) -> None:
    # By types, one prompt gives one text: they cannot see `n`.
    texts: Any = model.generate("to be", n=3, temperature=1.0, max_tokens=8)

    assert texts == model.generate(["to be"], n=3, temperature=1.0, max_tokens=8)
    assert len(set(texts)) > 1


def test_a_stream_of_several_texts_says_whose_each_part_is(model: Model) -> None:
    texts = ["", "", "", ""]
    for row, part in model.stream(["to be", "fn"], n=2, temperature=1.0, max_tokens=8):
        texts[row] += part

    assert texts == model.generate(["to be", "fn"], n=2, temperature=1.0, max_tokens=8)


def test_names_of_special_tokens_are_tokens_on_request_only(model: Model) -> None:
    tokenizer = model.tokenizer
    start, user = tokenizer.specials["<|bos|>"], tokenizer.specials["<|user|>"]

    assert user not in model.encode_prompt("<|user|>to")
    ids = model.encode_prompt("<|user|>to", special=True)
    assert ids == [start, user, *tokenizer.encode("to")]
    # A start that is written is not doubled.
    assert model.encode_prompt("<|bos|><|user|>to", special=True) == ids
    assert model.generate("<|user|>to", special=True) == model.generate(ids)


def test_a_chat_continues_the_rendered_conversation() -> None:
    source = answering_bundle()
    model = Model(source.config, source.weights, source.tokenizer, backend="reference")

    assert model.chat(HELLO) == "wxyz"
    assert "".join(model.stream_chat(HELLO)) == "wxyz"
    assert model.chat("hello") == "wxyz"
    assert model.chat("hello", chat_template="{{ bos_token }}{{ messages[0].content }}") != "wxyz"
    with pytest.raises(InputError, match="chat gives one answer"):
        model.chat("hello", n=2)


@pytest.mark.parametrize("call", [Model.generate, Model.stream, Model.score])
def test_an_empty_text_is_refused(model: Model, call: Callable[[Model, str], object]) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        call(model, "")


def test_what_is_no_text_is_refused(model: Model) -> None:
    wrong: list[Any] = [
        5,
        bytearray(b"x"),
        memoryview(b"x"),
        b"to be",
        {"to": "be"},
        [["to"]],
        [5, "to"],
        [[]],
    ]
    for prompt in wrong:
        with pytest.raises(InputError, match="is no prompt: pass a text"):
            model.generate(prompt)


def test_no_text_at_all_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="no prompt"):
        model.generate([])


def test_a_stream_refuses_before_it_starts(model: Model) -> None:
    with pytest.raises(ContextLengthError, match="max_tokens=62 or less"):
        model.stream("t", max_tokens=100)


def test_a_model_says_what_it_is_and_cannot_be_pickled(model: Model) -> None:
    assert repr(model) == "Model('model', 0.9M parameters, context of 64 tokens, reference on cpu)"
    with pytest.raises(TypeError, match="pass the name 'model', and call from_pretrained"):
        pickle.dumps(model)


def test_a_closed_model_gives_its_memory_back_and_says_so() -> None:
    with random_model() as model:
        weights = weakref.ref(model.weights.layers[0].mixer)
        assert model.generate("to be", max_tokens=2)

    gc.collect()
    assert weights() is None
    for call in (model.generate, model.score, model.embed, Model.describe):
        with pytest.raises(InputError, match="model was closed: load it again"):
            call(model if call == Model.describe else "to be")  # type: ignore[arg-type]
    assert repr(model) == "Model('model', closed)"


def test_a_tokenizer_has_a_length_and_is_called_as_in_transformers(model: Model) -> None:
    ids = model.encode_prompt("to be")

    assert len(model.tokenizer) == model.tokenizer.vocab_size
    assert model.tokenizer("to be") == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    assert model.tokenizer(["to be"])["input_ids"] == [ids]


def test_embeddings_are_of_what_the_head_reads_out(model: Model) -> None:
    ids = model.encode_prompt("to be")
    states = model.engine.hidden(ids)

    mean, last = (model.embed("to be", pooling=p, normalize=False) for p in ("mean", "last"))

    # The head's product rounds them, so that they are compared by what the operation gives.
    ops, weights = model.engine.ops, model.engine.weights  # type: ignore[attr-defined]  # an Engine
    np.testing.assert_array_equal(
        ops.project(states[None], weights.embedding if weights.head is None else weights.head)[0][
            0
        ],
        model.logits(ids),
    )
    np.testing.assert_array_equal(last, states[-1])
    np.testing.assert_allclose(mean, states.mean(axis=0), atol=1e-6)
    both = model.embed(["to be", "to be"])
    np.testing.assert_allclose(both, np.array([mean / np.linalg.norm(mean)] * 2), atol=1e-6)
    assert model.embed([]).shape == (0, model.config.width)
    with pytest.raises(InputError, match="pooling='max': choose mean or last"):
        model.embed("to be", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError, match="65 tokens do not fit"):
        model.embed([0] * 65)


def test_logits_are_those_of_every_token(model: Model) -> None:
    ids = model.encode_prompt("fn main")

    logits = model.logits(ids)

    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[-1], model.engine.prefill(ids, capacity=9)[1], atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([], InputError),
        ([300], InputError),
        ([0] * 65, ContextLengthError),
        ("abc", InputError),
        ([[0, 1]], InputError),
        (np.zeros((2, 2), np.int64), InputError),
        ([1.5], InputError),
    ],
    ids=["none", "unknown", "many", "text", "nested", "matrix", "fractions"],
)
def test_logits_of_impossible_tokens_are_refused(
    model: Model, ids: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        model.logits(ids)


def test_a_score_is_the_cross_entropy_after_bos(model: Model) -> None:
    text = "to be, or wörld"
    ids = model.encode_prompt(text)
    logits = model.logits(ids).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    score = model.score(text)

    nats = -np.log(probabilities[range(len(ids) - 1), ids[1:]]).sum()
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert (score.tokens, score.bytes) == (len(ids) - 1, 16)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 16)


def test_a_text_longer_than_the_context_is_scored_in_windows_that_overlap_by_half() -> None:
    model = random_model(context_length=8)
    ids = model.encode_prompt("uvwxyzUVWXYZ{|}~@")
    windows = [(0, 8, 8), (4, 12, 4), (8, 16, 4), (12, 17, 1)]
    rows = np.concatenate([model.logits(ids[a:b])[-new:] for a, b, new in windows])

    score = model.score("uvwxyzUVWXYZ{|}~@")

    probabilities = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    assert score.tokens == 17
    assert score.nats == pytest.approx(-np.log(probabilities[range(17), ids[1:]]).sum(), rel=1e-5)


@pytest.mark.parametrize("context_length", [1, 2, 7])
def test_every_token_is_scored_once_whatever_the_context(context_length: int) -> None:
    config = random_config(context_length=context_length)
    weights = map_leaves(_zeroed, silent_weights(config))
    model = Model(config, weights, random_tokenizer(), backend="reference")

    score = model.score("uvwxyzUVWXYZ{|}~@")

    # A head of zeros finds every token equally probable.
    assert score.nats == pytest.approx(17 * math.log(config.vocab_size))


def _zeroed(name: str, leaf: Stored) -> Stored:
    if name == "head" and isinstance(leaf, Int8):
        return dataclasses.replace(leaf, codes=np.zeros_like(leaf.codes))
    return leaf


@pytest.mark.skipif(backends.unavailable("numba") is not None, reason="needs numba")
def test_another_backend_generates_the_same_greedy_text(model: Model) -> None:
    other = Model(model.config, model.weights, model.tokenizer, backend="numba")

    assert other.generate("fn main", max_tokens=12) == model.generate("fn main", max_tokens=12)


def test_a_saved_model_is_loaded_again_and_says_the_same(model: Model, directory: Path) -> None:
    loaded = from_pretrained(directory, backend="reference")

    assert loaded.config == model.config
    assert loaded.generate("fn main", max_tokens=8) == model.generate("fn main", max_tokens=8)


def test_the_card_and_the_generation_settings_survive_loading_and_saving(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "README.md").write_text("# A card\n")
    (directory / "generation_config.json").write_text('{"temperature": 0.5}\n')

    from_pretrained(directory, backend="reference").save_pretrained(tmp_path / "copy")

    assert (tmp_path / "copy/README.md").read_text() == "# A card\n"
    assert "0.5" in (tmp_path / "copy/generation_config.json").read_text()


def test_a_card_that_is_a_link_to_elsewhere_is_not_read(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("secret")
    (directory / "README.md").symlink_to(tmp_path / "secret")

    with caplog.at_level(logging.WARNING, logger="nanochat"):
        from_pretrained(directory, backend="reference").save_pretrained(tmp_path / "copy")

    assert not (tmp_path / "copy" / "README.md").exists()
    assert "leads out of the model's directory, and is not read" in caplog.text


def test_a_saved_model_stops_at_the_ends_of_texts_and_turns(directory: Path) -> None:
    assert '"eos_token_id": [' in (directory / "generation_config.json").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_full_disk_leaves_no_half_of_a_new_model(tmp_path: Path) -> None:
    path = tmp_path / "model"

    command = [sys.executable, "-c", FULL_DISK, str(path)]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert said == f"cannot write {path}: File too large; free space or pass another path\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_full_disk_mixes_no_two_models(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    command = [sys.executable, "-c", FULL_DISK, str(directory)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)

    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("kind", ["gguf", "onnx", "mlx", "hf"])
def test_an_export_is_a_model_too(model: Model, directory: Path, tmp_path: Path, kind: str) -> None:
    source = load(directory, name="random", licence="MIT")
    path = tmp_path / f"x{format_named(kind).suffix}"
    export_model(source, path, kind=kind, verify=False)

    loaded = from_pretrained(path, backend="reference")

    assert loaded.generate("fn main", max_tokens=8) == model.generate("fn main", max_tokens=8)
    assert loaded.describe()["backend"] == "reference"


def test_a_graph_runs_in_onnxruntime_unless_another_backend_is_named(
    model: Model, directory: Path, tmp_path: Path
) -> None:
    source = load(directory, name="random", licence="MIT")
    export_model(source, tmp_path / "x", kind="onnx", verify=False)

    graph = from_pretrained(tmp_path / "x" / "model.onnx")
    exported = from_pretrained(directory, backend="onnx")

    assert graph.describe()["backend"] == exported.describe()["backend"] == "onnx"
    text = model.generate("fn main", max_tokens=8)
    assert graph.generate("fn main", max_tokens=8) == text
    assert exported.generate(["fn main", "to be"], max_tokens=8) == model.generate(
        ["fn main", "to be"], max_tokens=8
    )


def test_the_environment_variable_replaces_auto_for_a_graph_too(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(directory, name="random", licence="MIT")
    export_model(source, tmp_path / "x", kind="onnx", verify=False)
    monkeypatch.setenv("NANOCHAT_BACKEND", "reference")

    description = from_pretrained(tmp_path / "x").describe()

    assert description["backend"] == "reference"
    assert description["backend_reason"] == "NANOCHAT_BACKEND is set"


@pytest.mark.parametrize(("value", "opened"), [("onnx", "onnx"), ("", "safetensors")])
def test_the_environment_variable_decides_which_of_several_formats_is_fetched(
    value: str,
    opened: str,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub_client: HubClient,
) -> None:
    source = load(directory, name="random", licence="MIT")
    export_model(source, directory / "onnx", kind="onnx", verify=False)
    names = [path for path in directory.rglob("*") if path.is_file()]
    hub_client.hub.add(
        "org/name", {path.relative_to(directory).as_posix(): path.read_bytes() for path in names}
    )
    monkeypatch.setenv("NANOCHAT_BACKEND", value)

    loaded = from_pretrained("org/name")

    fetched = {path.suffix for path in (tmp_path / "hf_home").rglob("model.*")}
    assert fetched == {f".{opened}"}
    assert (loaded.describe()["backend"] == "onnx") == (opened == "onnx")


def test_only_files_that_are_not_mapped_are_read_into_memory(
    directory: Path, tmp_path: Path
) -> None:
    source = load(directory, name="random", licence="MIT")
    export_model(source, tmp_path / "x.gguf", kind="gguf", verify=False)
    export_model(source, tmp_path / "x", kind="onnx", verify=False)

    assert copied_bytes(directory) == 0
    assert copied_bytes(tmp_path / "x.gguf") == (tmp_path / "x.gguf").stat().st_size
    assert copied_bytes(tmp_path / "x") == (tmp_path / "x" / "model.onnx").stat().st_size


def test_only_files_of_the_model_itself_are_counted(tmp_path: Path) -> None:
    source = random_bundle()
    bitnet = {"quant_method": "bitnet"}
    export_model(source, tmp_path / "x", kind="mlx", verify=False)
    export_model(source, tmp_path / "y", kind="onnx", verify=False)
    save_tensors(
        tmp_path / "z",
        {"a": np.zeros(9, np.float32), "b": np.zeros(9, np.float32)},
        texts={"config.json": {"model_type": "bitnet", "quantization_config": bitnet}},
        others={},
        max_shard_bytes=1,
    )
    for folder in "xyz":
        with (tmp_path / folder / "other.gguf").open("wb") as file:
            # A file with a hole, which takes no space.
            file.truncate(2**40)
        (tmp_path / folder / "old.safetensors").symlink_to("gone")

    assert copied_bytes(tmp_path / "x") == (tmp_path / "x" / "model.safetensors").stat().st_size
    assert copied_bytes(tmp_path / "y") == (tmp_path / "y" / "model.onnx").stat().st_size
    shards = (tmp_path / "z").glob("model-*.safetensors")
    assert copied_bytes(tmp_path / "z") == sum(shard.stat().st_size for shard in shards) > 0
    assert from_pretrained(tmp_path / "x", backend="reference").generate("fn", max_tokens=2)


@pytest.mark.parametrize("kind", ["mlx", "onnx"])
def test_a_link_to_no_file_is_a_damaged_model(tmp_path: Path, kind: str) -> None:
    source = random_bundle()
    export_model(source, tmp_path / "x", kind=kind, verify=False)
    name = "model.onnx.data" if kind == "onnx" else "model.safetensors"
    (tmp_path / "x" / name).unlink(missing_ok=True)
    (tmp_path / "x" / name).symlink_to("gone")

    with pytest.raises(FormatError, match="No such file"):
        copied_bytes(tmp_path / "x")


@pytest.mark.parametrize("backend", ["reference", "numba", "onnx"])
def test_a_model_for_which_there_is_no_room_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)

    with pytest.raises(MemoryShortageError, match=rf"needs about .* on backend {backend}, and"):
        from_pretrained(directory, backend=backend)


def test_a_graph_for_which_there_is_no_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_bundle()
    export_model(source, tmp_path / "x", kind="onnx", verify=False)
    # Enough for the file, which is asked for first.
    free = 1000 + copied_bytes(tmp_path / "x")
    monkeypatch.setattr(memory, "free_bytes", lambda: free)

    with pytest.raises(MemoryShortageError, match=r"needs about .* on backend onnx, and"):
        from_pretrained(tmp_path / "x")


def test_files_that_are_larger_than_what_is_free_are_not_read(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(directory, name="random", licence="MIT")
    export_model(source, tmp_path / "x.gguf", kind="gguf", verify=False)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)

    with pytest.raises(MemoryShortageError, match=r"the files of .*x\.gguf take"):
        from_pretrained(tmp_path / "x.gguf", backend="reference")


@pytest.mark.parametrize("kv_cache", get_args(Storage)[1:])
def test_a_graph_keeps_keys_and_values_in_float32_only(directory: Path, kv_cache: Storage) -> None:
    with pytest.raises(BackendError, match=f"kv_cache='{kv_cache}'.*keys and values in float32"):
        from_pretrained(directory, backend="onnx", kv_cache=kv_cache)


def test_a_graph_has_no_operations_of_its_own() -> None:
    with pytest.raises(BackendError, match="runs a whole graph"):
        backends.get("onnx")


def test_an_unknown_name_is_no_model() -> None:
    with pytest.raises(ModelNotFoundError, match="no model is named 'no-such-model'"):
        from_pretrained("no-such-model")


def test_a_directory_without_a_model_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)


def test_a_model_without_a_tokenizer_is_damaged(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()

    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        from_pretrained(directory, backend="reference")


def test_a_tokenizer_of_another_model_is_refused(model: Model) -> None:
    larger = Tokenizer.train(
        ["abcabcabc xyzxyzxyz uvwuvwuvw"] * 9 + [str(i) * 9 for i in range(99)] * 9, 340
    )

    with pytest.raises(ConfigError, match="tokens but the model only 300"):
        Model(model.config, model.weights, larger, backend="reference")


def test_an_unknown_backend_is_refused(model: Model) -> None:
    with pytest.raises(BackendError, match="'abacus'"):
        Model(model.config, model.weights, model.tokenizer, backend="abacus")


def test_a_backend_of_ones_own_is_taken(model: Model) -> None:
    own = Model(model.config, model.weights, model.tokenizer, backend=ReferenceOps())

    assert own.describe()["backend"] == "reference"
    assert own.describe()["backend_reason"] == "given"


def test_the_description_says_what_keys_and_values_take(model: Model) -> None:
    narrow = Model(
        model.config, model.weights, model.tokenizer, backend="reference", kv_cache="float16"
    )

    wide, half = model.describe(), narrow.describe()

    assert (wide["kv_cache"], half["kv_cache"]) == ("float32", "float16")
    assert wide["kv_bytes_per_token"] == 2 * int(str(half["kv_bytes_per_token"])) > 0


def test_the_choice_of_the_backend_is_logged_once_with_its_reason(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="nanochat"):
        Model(model.config, model.weights, model.tokenizer, backend="reference", name="mine")

    (message,) = caplog.messages
    assert message.startswith("mine runs on reference (cpu): asked for. To use more of this")
    assert "choose backend numba" in message


def test_the_description_counts_every_parameter_and_byte(model: Model, directory: Path) -> None:
    description = model.describe()

    stored = (directory / "model.safetensors").stat().st_size
    assert description["parameters"] == sum(c.parameters for c in tensor_classes(model.config))
    # The file has a header, too.
    assert 0 <= stored - int(str(description["bytes"])) < 10_000


def test_the_description_names_the_format_of_every_class_of_tensors(model: Model) -> None:
    formats = {c.name: (c.tensors, c.format) for c in tensor_classes(model.config)}

    assert formats["embedding"] == (1, "int8, a float16 scale per row")
    assert formats["layers.mixer.q"] == (
        2,
        "ternary, 2 bits, a float16 scale per 256 columns",
    )
    assert formats["layers.mixer_site.norm"] == (2, "float32")


@pytest.mark.parametrize("name", [*backends_under_test(), "onnx"])
def test_every_backend_embeds_or_says_that_it_cannot(name: str, directory: Path) -> None:
    model = from_pretrained(directory, backend=name)

    if name == "onnx":
        with pytest.raises(BackendError, match="gives logits only: load the model with another"):
            model.embed("to be")
    else:
        expected = from_pretrained(directory, backend="reference").embed("to be")
        # Cosines, for a rounding may have turned the other way.
        assert model.embed("to be") @ expected > 0.999
