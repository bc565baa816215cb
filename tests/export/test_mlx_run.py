"""mlx-lm itself runs what is written for it: the logits are the model's but for the rounding of activations."""

from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx_lm

from nanochat.chat import render
from nanochat.export.mlx import write_mlx
from nanochat.export.mlx_run import MlxLm
from nanochat.export.verify import check_parity
from tests.export.stock_models import (
    CHAT,
    CONFIGS,
    IDS,
    ODD_TEXTS,
    make_source,
    polite_source,
    reference_greedy,
    reference_logits,
    rms_ratio,
)


@pytest.fixture(scope="module")
def polite(tmp_path_factory: pytest.TempPathFactory) -> MlxLm:
    folder = tmp_path_factory.mktemp("polite")
    write_mlx(folder, polite_source(), runtime="mlx-lm")
    return MlxLm(folder)


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_are_the_model_s(case: str, tmp_path: Path) -> None:
    write_mlx(tmp_path, make_source(case), runtime="mlx-lm")
    artefact = MlxLm(tmp_path)

    logits = artefact.logits(IDS)

    # float32 sums in another order; then the rounding of activations, which may send a token to another expert.
    assert rms_ratio(logits, reference_logits(case, rounded=False)) < 1e-5
    assert rms_ratio(logits, reference_logits(case, rounded=True)) < artefact.tolerance
    assert artefact.greedy(IDS[:8], num_tokens=8) == reference_greedy(case, num_tokens=8)


def test_parity_is_within_the_tolerance(polite: MlxLm) -> None:
    parity = check_parity(polite_source(), polite)

    assert parity.ok
    assert parity.same_text
    assert parity.runtime.startswith("mlx-lm 0.")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_the_tokenizer_gives_the_same_tokens(text: str, polite: MlxLm) -> None:
    ours = polite_source().tokenizer

    assert polite.tokenizer.encode(text, add_special_tokens=False) == ours.encode(text)
    assert polite.tokenizer.encode(text) == [ours.bos, *ours.encode(text)]
    assert polite.tokenizer.decode(ours.encode(text)) == text


def test_the_chat_template_gives_the_tokens_of_a_conversation(polite: MlxLm) -> None:
    tokens = polite.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)

    assert tokens == render(CHAT, polite_source().tokenizer)


def test_an_answer_ends_where_the_turn_does(polite: MlxLm) -> None:
    prompt = polite.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)

    *_, last = mlx_lm.stream_generate(polite.model, polite.tokenizer, prompt, max_tokens=12)
    text = mlx_lm.generate(polite.model, polite.tokenizer, prompt, max_tokens=12)

    assert last.finish_reason == "stop"
    assert last.token == polite_source().tokenizer.end
    assert text == "wxyz"
