"""A model answers the requests of lm-evaluation-harness as its definition says, on every backend."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nanochat.errors import ContextLengthError, InputError
from nanochat.evaluation.continuations import continuations
from nanochat.evaluation.harness import NanochatLM
from nanochat.evaluation.texts import score_texts
from nanochat.lm import Model
from nanochat.text.chat import render
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3
from tests.evaluation.models import RUNNERS, model
from tests.evaluation.task_folders import TEXTS
from tests.parity.random_models import answering_bundle, random_bundle

PAIRS = [
    ("to be", " or not to be"),
    ("to be ", "or not to be"),
    ("", "Hello, wörld"),
    ("to be", " x"),
    ("to be", " }"),
    ("\n", "main"),
    ("that is the question " * 20, "// to be"),
    ("to be", " or not to be"),
    ("fn main() {", ' println!("Hello") } that is the question'),
]


def requests(kind: str, arguments: Iterable[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def tolerance(runner: str) -> float:
    # In a library, an activation may be rounded the other way where more rows are multiplied at once.
    return 1e-9 if runner == "numba" else 2e-2


def brute_force(tested: Model, context: list[int], ids: list[int]) -> tuple[float, bool]:
    """One pass over all tokens, with a softmax in double precision."""
    logits = tested.logits([*context, *ids][:-1])[-len(ids) :].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return (
        float(logprobs[np.arange(len(ids)), ids].sum()),
        logits.argmax(axis=1).tolist() == ids,
    )


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_likelihood_is_that_of_the_pair_encoded_whole_and_cut_on_the_left(runner: str) -> None:
    tested = model(runner)
    encode, bos = tested.tokenizer.encode, [*tested.tokenizer.opening]

    found = NanochatLM(tested).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)

    for (context, text), (logprob, is_greedy) in zip(PAIRS, found, strict=True):
        whole = [*bos, *encode(context + text)]
        context_ids = [*bos, *encode(context.rstrip())]
        ids = whole[len(context_ids) :]
        expected = brute_force(tested, context_ids[-(65 - len(ids)) :], ids)
        assert logprob == pytest.approx(expected[0], rel=tolerance(runner))
        assert is_greedy == expected[1]


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_a_model_would_write_is_greedy_and_nothing_else(runner: str) -> None:
    tested = model(runner)
    context = [1, 5, 9]
    greedy = [piece.token for piece in tested.pieces([context], max_tokens=6, ignore_eos=True)]
    other = [*greedy[:-1], (greedy[-1] + 1) % 300]

    found = {
        answer.number: answer
        for answer in continuations(
            tested.engine,
            [(context, greedy), (context, other), (context, greedy[:1]), (context, greedy)],
        )
    }

    assert [found[number].is_greedy for number in range(4)] == [True, False, True, True]
    assert found[0].logprob == found[3].logprob
    assert found[2].logprob > found[0].logprob > found[1].logprob


@pytest.mark.parametrize("runner", RUNNERS)
def test_many_contexts_with_many_answers_have_the_likelihood_of_each_alone(runner: str) -> None:
    tested = model(runner)
    random = np.random.default_rng(0)
    contexts = [random.integers(0, 300, length).tolist() for length in (1, 60, 33, 2, 33)]
    pairs = [
        (context, random.integers(0, 300, length).tolist())
        for context in contexts
        for length in [1, 2, 5, 3, 2] * 10
    ]

    found = sorted(continuations(tested.engine, pairs))

    assert [number for number, _, _ in found] == [*range(250)]
    for number in range(0, 250, 7):
        expected = brute_force(tested, *pairs[number])
        assert found[number].logprob == pytest.approx(expected[0], rel=tolerance(runner))


def test_answers_that_are_longer_than_what_is_read_at_once_are_read_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tested = model("numba")
    random = np.random.default_rng(0)
    pairs = [([1, 2], random.integers(0, 300, length).tolist()) for length in (40, 3, 20, 62)]

    whole = sorted(continuations(tested.engine, pairs))
    monkeypatch.setattr("nanochat.evaluation.continuations._LOGITS", 7 * 320)
    parts = sorted(continuations(tested.engine, pairs))

    assert [part.logprob for part in parts] == pytest.approx([each.logprob for each in whole])


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_rolling_likelihood_is_that_of_the_windows_of_the_harness(runner: str) -> None:
    tested = model(runner)

    found = NanochatLM(tested).loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in TEXTS]), disable_tqdm=True
    )

    for text, logprob in zip(TEXTS, found, strict=True):
        windows = map(
            make_disjoint_window,
            get_rolling_token_windows(
                tested.tokenizer.encode(text), tested.tokenizer.bos, max_seq_len=64, context_len=1
            ),
        )
        expected = sum(brute_force(tested, context, ids)[0] for context, ids in windows)
        assert logprob == pytest.approx(expected, rel=1e-3)


def test_a_rolling_likelihood_is_the_score_of_a_text_to_the_last_bit() -> None:
    tested = model("numba")
    texts = [text for text in TEXTS if text]

    found = NanochatLM(tested).loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )

    scores = score_texts(tested, texts, convention="lm-eval").scores.values()
    assert found == [-score.nats for score in scores]
    assert found[0] == -tested.score(texts[0]).nats


@pytest.mark.parametrize("runner", RUNNERS)
def test_texts_are_those_that_the_model_writes(runner: str) -> None:
    tested = model(runner)
    prompts = ["to be", "that is the question", "x", "fn main() { " * 20]
    options = {"until": ["q"], "max_gen_toks": 9}

    found = NanochatLM(tested).generate_until(
        requests("generate_until", [(prompt, options) for prompt in prompts]), disable_tqdm=True
    )

    ids = [[*tested.tokenizer.opening, *tested.tokenizer.encode(prompt)] for prompt in prompts]
    expected = tested.generate([each[-55:] for each in ids], max_tokens=9, stop=["q"])
    assert len(ids[-1]) > 55
    assert found == expected


def test_a_string_that_ends_a_text_is_left_out() -> None:
    tested = Model.from_bundle(answering_bundle(), backend="numba")
    prompt = "<|bos|><|user|>hi<|end|><|assistant|>"
    until: list[Any] = [["y"], "yz", ["zw", "x"], [], ["<|end|>"]]

    found = NanochatLM(tested).generate_until(
        requests(
            "generate_until", [(prompt, {"until": each, "max_gen_toks": 8}) for each in until]
        ),
        disable_tqdm=True,
    )

    assert found == ["wx", "wx", "w", "wxyz", "wxyz"]


def test_drawn_texts_depend_on_the_seed_and_the_place_of_their_request() -> None:
    tested = model("numba")
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
    asked = requests("generate_until", [("to be", options)] * 3)

    found = NanochatLM(tested, seed=5).generate_until(asked, disable_tqdm=True)

    assert len(set(found)) == 3
    assert NanochatLM(tested, seed=5).generate_until(asked[:2], disable_tqdm=True) == found[:2]
    assert NanochatLM(tested, seed=6).generate_until(asked[:1], disable_tqdm=True) == found[1:2]


def test_options_that_are_not_known_are_named(caplog: pytest.LogCaptureFixture) -> None:
    options = {"until": ["x"], "max_gen_toks": 2, "num_beams": 4, "do_sample": False}

    NanochatLM(model("numba")).generate_until(
        requests("generate_until", [("to be", options)]), disable_tqdm=True
    )

    assert "{'num_beams': 4}" in caplog.text


def test_answers_are_kept_for_the_next_time() -> None:
    kept: dict[tuple[str, Any], object] = {}

    class Hook:
        def add_partial(self, kind: str, arguments: tuple[Any, ...], answer: object) -> None:
            kept[kind, arguments[0]] = answer

    tested = NanochatLM(model("numba"))
    tested.set_cache_hook(Hook())
    answers = [
        tested.loglikelihood(requests("loglikelihood", [("to be", " or")]), disable_tqdm=True)[0],
        tested.loglikelihood_rolling(
            requests("loglikelihood_rolling", [("to be",)]), disable_tqdm=True
        )[0],
        tested.generate_until(
            requests("generate_until", [("to be", {"until": [], "max_gen_toks": 2})]),
            disable_tqdm=True,
        )[0],
    ]

    kinds = ["loglikelihood", "loglikelihood_rolling", "generate_until"]
    assert [kept[kind, "to be"] for kind in kinds] == answers


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        pytest.param(
            ("to", " be or not to be, that is the question" * 20),
            ContextLengthError,
            "does not fit the model's context of 64",
            id="a long answer",
        ),
        pytest.param(("fn mai", "n"), InputError, "'n' is part of the last token", id="merged"),
    ],
)
def test_answers_that_cannot_be_scored_are_refused(
    pair: tuple[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        NanochatLM(model("numba")).loglikelihood(
            requests("loglikelihood", [pair]), disable_tqdm=True
        )


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    with pytest.raises(ContextLengthError, match="max_gen_toks=256 leaves no room for a prompt"):
        NanochatLM(model("numba")).generate_until(
            requests("generate_until", [("to be", {"until": ["x"]})]), disable_tqdm=True
        )


def test_contexts_that_are_cut_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    NanochatLM(model("numba")).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)

    assert "of 9 requests exceed the model's context of 64 tokens in 1" in caplog.text


def test_a_conversation_is_read_with_its_special_tokens() -> None:
    tested = model("numba")
    adapter = NanochatLM(tested)
    messages: list[Any] = [{"role": "user", "content": "to be?"}]

    text = adapter.apply_chat_template(messages)

    assert adapter.tok_encode(text) == render(messages, tested.tokenizer)
    assert adapter.chat_template(chat_template=True) == tested.tokenizer.chat_template
    assert adapter.chat_template() == ""
    assert adapter.tokenizer_name.startswith("random-")


def test_the_last_message_of_a_conversation_can_be_continued() -> None:
    messages: list[Any] = [
        {"role": "user", "content": "to be?"},
        {"role": "assistant", "content": "Answer: "},
    ]

    text = NanochatLM(model("numba")).apply_chat_template(messages, add_generation_prompt=False)

    assert text == "<|bos|><|user|>to be?<|end|><|assistant|>Answer:"


def foreign_model(template: str) -> Model:
    start, end = map(llama_3().token_to_id, ("<|begin_of_text|>", "<|eot_id|>"))
    roles = Roles(bos=start, eos=end, chat_template=template)
    tokenizer = LibraryTokenizer(json.loads(llama_3().to_str()), roles)
    bundle = random_bundle(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size)
    return Model.from_bundle(bundle, backend="numba")


def test_system_messages_are_left_out_where_a_template_refuses_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.content }}]{% endfor %}"
    )
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "to be?"},
    ]

    text = NanochatLM(foreign_model(template)).apply_chat_template(messages)

    assert text == "[to be?]"
    assert "knows no system messages: left out" in caplog.text


def test_a_model_without_a_template_holds_no_conversations() -> None:
    adapter = NanochatLM(foreign_model(""))

    with pytest.raises(InputError, match="has no chat template: evaluate it without"):
        adapter.apply_chat_template([{"role": "user", "content": "to be?"}])
    with pytest.raises(InputError, match="has no chat template"):
        adapter.chat_template(chat_template=True)


def test_the_harness_knows_the_adapter_by_its_name() -> None:
    assert get_model("nanochat") is NanochatLM


def test_a_model_is_loaded_by_its_name() -> None:
    adapter = NanochatLM.create_from_arg_string("pretrained=nanochat-tiny,backend=numba")

    assert adapter.model.name == "nanochat-tiny"
    assert adapter.max_length == 1024
