"""What is wrong with other people's files is said by its name, with what to do, and what is said to be done works."""

import logging
import re
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from nanochat.errors import FormatError, ModelNotFoundError, NanochatError
from nanochat.export.formats import load
from nanochat.text.library import load_tokenizer
from nanochat.zoo.hub import locate
from tests.core.foreign_tokenizers import TEXTS, write_llama_3
from tests.export.foreign_ggufs import Case, write
from tests.export.foreign_models import build, save

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 4915200000
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BitNet model in several files, with its tokenizer."""
    save(
        build("autobitlinear packed", vocabulary=308),
        "autobitlinear packed",
        tmp_path,
        shard="20KB",
    )
    return write_llama_3(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model-00001-of-00013.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.gguf",
        "model.onnx",
    ],
)
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    path = folder if name.endswith((".json", ".safetensors")) else folder / name

    with pytest.raises(
        FormatError, match=rf"{name}: a Git LFS pointer of 135 bytes.* `git lfs pull`"
    ):
        load(path)


@pytest.mark.parametrize("name", ["model.GGUF", "model.Gguf", "model.gguf"])
def test_a_suffix_in_capital_letters_is_a_suffix(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, Case(architecture="qwen3"))

    location = locate(str(path))

    assert location.path == path
    assert load(location.path).config.num_layers == 2


@pytest.mark.parametrize("name", ["x.gguf", "x.GGUF"])
def test_a_file_is_not_called_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write(tmp_path / "models" / name, Case(architecture="qwen3"))

    with caplog.at_level(logging.INFO):
        location = locate(f"models/{name}")

    assert location.path.is_file()
    assert "directory" not in caplog.text


def test_a_missing_file_with_a_suffix_in_capital_letters_is_missing() -> None:
    with pytest.raises(ModelNotFoundError, match=r"x\.GGUF: no such directory, \.gguf or \.onnx"):
        locate("x.GGUF")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.fp16.safetensors",
            "if that one is the whole model, rename it to model.safetensors",
        ),
        (
            "model-00001-of-00002.safetensors",
            r"no model\.safetensors\.index\.json beside model-00001",
        ),
        ("pytorch_model.bin", r"but pytorch_model\.bin: pickles can run code"),
        ("README.md", "the download is incomplete; fetch the model again"),
    ],
)
def test_what_is_there_instead_of_tensors_is_told(folder: Path, name: str, message: str) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / name).write_bytes(b"some")

    with pytest.raises(FormatError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00013.safetensors"])
def test_who_passes_one_file_of_a_folder_is_told_to_pass_the_folder(
    folder: Path, name: str
) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no model by itself: pass its folder, {folder}"):
        locate(str(folder / name))


def test_a_tokenizer_of_another_kind_is_made_one_as_the_message_says(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 8),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    with pytest.raises(FormatError, match=r"no tokenizer\.json beside tokenizer\.model") as error:
        load_tokenizer(tmp_path)

    line = re.search(r"by (AutoTokenizer\S+)", str(error.value))
    assert line is not None
    eval(line[1], {"AutoTokenizer": AutoTokenizer})

    tokenizer = load_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer.encode("to be or not 12") == theirs.encode("to be or not 12")


def test_a_folder_without_any_tokenizer_says_so(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()

    with pytest.raises(NanochatError, match=r"no tokenizer\.json beside the model; copy the one"):
        load(folder)
