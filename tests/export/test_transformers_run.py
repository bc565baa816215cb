"""transformers itself runs what is written for it: the logits are the model's but for the rounding of activations."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.export.stock.transformers import write_transformers
from nanochat.export.stock.transformers_run import Transformers
from nanochat.proof.parity import check_parity
from nanochat.tensors import save_tensors
from tests.export.stock_models import (
    CHAT,
    CONFIGS,
    IDS,
    make_bundle,
    reference_greedy,
    reference_logits,
    rms_ratio,
)
from tests.parity.random_models import answering_bundle, random_tokenizer


@pytest.fixture(scope="module")
def polite(tmp_path_factory: pytest.TempPathFactory) -> Transformers:
    folder = tmp_path_factory.mktemp("polite")
    write_transformers(folder, answering_bundle())
    return Transformers(folder)


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_are_the_model_s(case: str, tmp_path: Path) -> None:
    write_transformers(tmp_path, make_bundle(case))
    artefact = Transformers(tmp_path)

    logits = artefact.logits(IDS)

    assert rms_ratio(logits, reference_logits(case, rounded=False)) < 1e-5
    # Activations that are not rounded may go to another expert.
    assert rms_ratio(logits, reference_logits(case, rounded=True)) < 5e-2
    assert artefact.greedy(IDS[:8], num_tokens=8) == reference_greedy(case, num_tokens=8)


def test_parity_is_that_of_float32(tmp_path: Path) -> None:
    source = make_bundle("experts")
    write_transformers(tmp_path, source)

    parity = check_parity(source, Transformers(tmp_path))

    assert parity.ok
    assert parity.same_text
    assert parity.report.rms_ratio < 1e-5
    assert parity.rounding_error > 1e-3
    assert parity.runtime.startswith("transformers ")


def test_an_answer_ends_where_the_turn_does(polite: Transformers) -> None:
    prompt = polite.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    (tokens,) = polite.model.generate(**prompt, max_new_tokens=12)

    ours = random_tokenizer()
    answer = tokens[prompt["input_ids"].shape[1] :].tolist()
    assert answer == [*ours.encode("wxyz"), ours.end]


def test_shards_are_found_by_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nanochat.export.stock.folder.save_tensors",
        partial(save_tensors, max_shard_bytes=300_000),
    )
    write_transformers(tmp_path, make_bundle("untied"))

    logits = Transformers(tmp_path).logits(IDS)

    assert (tmp_path / "model.safetensors.index.json").exists()
    assert rms_ratio(logits, reference_logits("untied", rounded=False)) < 1e-5


def test_weights_and_computation_are_float32(polite: Transformers) -> None:
    assert {parameter.dtype for parameter in polite.model.parameters()} == {torch.float32}
    assert polite.logits(IDS).dtype == np.float32
