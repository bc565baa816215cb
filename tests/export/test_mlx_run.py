"""mlx-lm itself runs what is written for it: the logits are the model's but for the rounding of activations."""

from pathlib import Path

import mlx_lm
import pytest

from nanochat.export.stock.mlx import write_mlx
from nanochat.export.stock.mlx_run import MlxLm
from nanochat.proof.parity import check_parity
from tests.export.stock_models import (
    CHAT,
    CONFIGS,
    HYBRIDS,
    IDS,
    ROTATIONS,
    make_bundle,
    reference_greedy,
    reference_logits,
    rms_ratio,
)
from tests.parity.random_models import answering_bundle, random_tokenizer


@pytest.fixture(scope="module")
def polite(tmp_path_factory: pytest.TempPathFactory) -> MlxLm:
    folder = tmp_path_factory.mktemp("polite")
    write_mlx(folder, answering_bundle())
    return MlxLm(folder)


@pytest.mark.parametrize("case", [*CONFIGS, *HYBRIDS])
def test_logits_are_the_model_s(case: str, tmp_path: Path) -> None:
    write_mlx(tmp_path, make_bundle(case))
    artefact = MlxLm(tmp_path)

    logits = artefact.logits(IDS)

    assert rms_ratio(logits, reference_logits(case, rounded=False)) < 1e-5
    # Activations that are not rounded may go to another expert.
    assert rms_ratio(logits, reference_logits(case, rounded=True)) < 5e-2
    assert artefact.greedy(IDS[:8], num_tokens=8) == reference_greedy(case, num_tokens=8)


@pytest.mark.parametrize("case", ROTATIONS)
def test_rotated_logits_are_the_model_s(case: str, tmp_path: Path) -> None:
    write_mlx(tmp_path, make_bundle(case))
    artefact = MlxLm(tmp_path)

    error = rms_ratio(artefact.logits(IDS), reference_logits(case, rounded=False))

    # It rounds embeddings that are rotated to float16, and nothing else.
    rounded = ROTATIONS[case].table_format == "ternary"
    assert artefact.tolerance == (5e-3 if rounded else 1e-4)
    assert error < (5e-3 if rounded else 1e-5)
    assert artefact.greedy(IDS[:8], num_tokens=8) == reference_greedy(case, num_tokens=8)


def test_parity_is_that_of_float32(tmp_path: Path) -> None:
    source = make_bundle("experts")
    write_mlx(tmp_path, source)

    parity = check_parity(source, MlxLm(tmp_path))

    assert parity.ok
    assert parity.same_text
    assert parity.report.rms_ratio < 1e-5
    assert parity.rounding_error > 1e-3
    assert parity.runtime.startswith("mlx-lm 0.")


def test_an_answer_ends_where_the_turn_does(polite: MlxLm) -> None:
    prompt = polite.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)

    *_, last = mlx_lm.stream_generate(polite.model, polite.tokenizer, prompt, max_tokens=12)
    text = mlx_lm.generate(polite.model, polite.tokenizer, prompt, max_tokens=12)

    assert last.finish_reason == "stop"
    assert last.token == random_tokenizer().end
    assert text == "wxyz"
