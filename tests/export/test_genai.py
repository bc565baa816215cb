"""An exported folder is loaded by onnxruntime-genai as it is, and writes what the model writes."""

from pathlib import Path
from typing import Any

import onnxruntime_genai
import pytest

from bench.peers.genai import GenaiModel
from nanochat.bundle import Bundle
from nanochat.errors import ConfigError, FormatError
from nanochat.export.onnx.engine import OnnxEngine
from nanochat.export.onnx.genai import genai_config, write_genai
from nanochat.export.onnx.write import Target
from nanochat.proof.parity import check_parity
from tests.export.pages import tiny
from tests.parity.random_models import random_bundle, random_tokenizer, reciting_bundle

TARGETS: tuple[Target, ...] = ("ort", "standard")
DELTA = {"delta_heads": 2, "delta_key_dim": 64, "delta_value_dim": 128}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied head": {"tie_embeddings": False},
    "mHC": {"num_streams": 4},
    "hybrid": {"layer_pattern": ("delta", "attention"), **DELTA},
    "delta alone": {"layer_pattern": ("delta",), **DELTA},
    "loop and experts": {"loop_count": 2, "num_experts": 3, "expert_width": 256},
}


@pytest.fixture(scope="module")
def source() -> Bundle:
    return tiny()


@pytest.fixture(scope="module")
def folder(source: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genai") / "tiny"
    write_genai(path, source)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(folder)))


def test_the_folder_holds_what_each_program_reads(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "genai_config.json",
        "generation_config.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_shipped_model_agrees_with_the_reference(source: Bundle, folder: Path) -> None:
    parity = check_parity(source, GenaiModel(folder))

    assert parity.ok
    assert parity.same_text
    assert parity.report.median_ratio <= 1e-4
    assert parity.runtime.startswith("onnxruntime-genai 0.")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_it_generates_what_the_model_generates(case: str, target: Target, tmp_path: Path) -> None:
    source = random_bundle(**CASES[case])
    write_genai(tmp_path, source, target=target)
    prompt = [0, *source.tokenizer.encode("to be or")]

    tokens = GenaiModel(tmp_path).generate(prompt, max_length=30)

    expected = OnnxEngine(tmp_path / "model.onnx").greedy(prompt, num_tokens=30 - len(prompt))
    ends = [place for place, token in enumerate(expected) if token in source.tokenizer.stop_ids]
    # Tokens that end a text end it here, too.
    assert len(tokens) >= min([7, *ends])
    assert tokens == expected[: len(tokens)]


def test_prompts_of_different_lengths_share_a_batch(
    source: Bundle, folder: Path, tokenizer: Any
) -> None:
    texts = ["fn main() {", "struct Point { x: i32, y: "]
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=24, batch_size=2)
    generator = onnxruntime_genai.Generator(model, parameters)

    generator.append_tokens(tokenizer.encode_batch(texts))
    while not generator.is_done():
        generator.generate_next_token()

    engine = OnnxEngine(folder / "model.onnx")
    padded = max(len(source.tokenizer.encode(text)) for text in texts)
    for row, text in enumerate(texts):
        found = list(generator.get_sequence(row)[padded:])
        prompt = source.tokenizer.encode(text)
        assert len(found) > 8
        assert engine.greedy(prompt, num_tokens=len(found)) == found


@pytest.mark.parametrize("end", ["eos", "end"])
def test_it_stops_at_tokens_that_end_a_text(end: str, tmp_path: Path) -> None:
    text = [10, 11, 12, getattr(random_tokenizer(), end), 13]
    write_genai(tmp_path, reciting_bundle(text))

    tokens = GenaiModel(tmp_path).generate(text[:1], max_length=20)

    # It takes the token in some versions, and leaves it out in others.
    assert tokens in ([11, 12, text[3]], [11, 12])


def test_the_configuration_is_the_models(source: Bundle) -> None:
    content = genai_config(source, "ort")

    assert content["model"] == {
        "bos_token_id": 0,
        "eos_token_id": [1, 6],
        "pad_token_id": 2,
        "context_length": 1024,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "head_size": 64,
            "hidden_size": 256,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "num_attention_heads": 4,
            "num_hidden_layers": 6,
            "num_key_value_heads": 2,
        },
        "type": "decoder",
        "vocab_size": 4096,
    }


def test_what_it_cannot_load_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot load it"):
        GenaiModel(tmp_path)


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    source = random_bundle(loop_count=2, exit_threshold=0.5)

    with pytest.raises(ConfigError, match="exit_threshold"):
        write_genai(tmp_path / "new", source)

    assert not (tmp_path / "new").exists()
