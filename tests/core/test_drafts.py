"""What is guessed of a text is what it had before, and as much of it as pays; the text is the same without."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.errors import InputError
from nanochat.generation.costs import Chooser
from nanochat.generation.drafts import Draft, Index
from nanochat.generation.options import Piece
from nanochat.generation.session import Session, generate
from nanochat.lm import Model
from nanochat.rows import PAGE
from nanochat.text.grammar import Vocabulary, json_grammar, regex_grammar
from nanochat.text.thinking import KNOWN_MARKS, Thoughts
from tests.parity.random_models import random_bundle


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_bundle(random_bundle(seed=3, context_length=512), backend="numba")


# What is guessed.


def followed(ids: list[int], alike: int) -> list[int] | None:
    """What followed the last tokens where they were before, found the slow way."""
    last = ids[-alike:]
    places = [i for i in range(alike, len(ids)) if ids[i - alike : i] == last]
    return ids[places[-1] :] if len(ids) >= alike and places else None


@pytest.mark.parametrize("seed", range(20))
def test_what_followed_the_last_tokens_before_is_guessed_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = rng.integers(0, 2**18, 4)
    ids = rng.choice(some, rng.integers(1, 30)).tolist()
    draft = Draft(ids, Index.of(ids))

    for _ in range(30):
        found = followed(ids, 4) or followed(ids, 2) or []
        assert list(draft.guess(3).tokens) == found[:3]
        ids.append(int(rng.choice(some)))
        draft.push()


def test_a_prediction_is_followed_from_its_beginning_and_found_again_where_the_text_comes_back() -> (
    None
):
    # The first token of an answer is there before the first guess.
    ids, predicted = [1, 2, 10], [10, 11, 12, 13, 14, 15]
    draft = Draft(ids, Index.of(ids[:2]), predicted)
    guesses = [draft.guess(2).tokens]
    # One other token stands in the place of one; after two, it is looked for.
    for token in (99, 12, 98, 97, 11, 12):
        ids.append(token)
        draft.push()
        guesses.append(draft.guess(2).tokens)

    assert guesses == [(11, 12), (12, 13), (13, 14), (14, 15), (), (), (13, 14)]


def test_guesses_that_do_not_stand_become_improbable_and_those_that_do_certain() -> None:
    ids = [1, 2, 3] * 4
    draft = Draft(ids, Index.of(ids))
    first = draft.guess(1).chances[0]
    for _ in range(12):
        draft.guess(3)
        ids.append(ids[-3])
        draft.push()
    sure = draft.guess(1).chances[0]
    for token in range(12):
        for new in (1, 2, 50 + token):
            draft.guess(3)
            ids.append(new)
            draft.push()

    assert first == 0.5
    assert sure > 0.9
    assert draft._chances["said", 2] < 0.3


# How much of it pays.


class Clock:
    """A runner whose steps take what a table says."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds

    def teach(self, chooser: Chooser, *kinds: int) -> None:
        for kind in kinds:
            for _ in range(4):
                chooser.note(kind, self.seconds[kind])


@pytest.mark.parametrize(
    ("chance", "seconds", "expected"),
    [
        (0.9, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.4, 8: 2.3}, 7),
        (0.5, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.4, 8: 2.3}, 2),
        (0.5, {1: 1.0, 2: 1.6, 3: 2.0, 4: 2.2, 8: 4.0}, 0),
        (0.9, {1: 1.0, 2: 1.6, 3: 2.0, 4: 2.2, 8: 4.0}, 3),
        (0.04, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 8: 1.0}, 0),
    ],
)
def test_as_much_is_guessed_as_is_fastest(
    chance: float, seconds: dict[int, float], expected: int
) -> None:
    clock = Clock(seconds)
    chooser = Chooser(clock)
    clock.teach(chooser, *seconds)
    chances = tuple(chance**place for place in range(1, 8))

    rates = {
        count: (1 + sum(chances[:count])) / seconds[1 + count if count < 4 else 8]
        for count in range(8)
    }
    assert chooser.choose([1], [chances]) == [expected]
    assert rates[expected] > max(rates.values()) / 1.03 or chance < 0.05


def test_of_several_texts_the_most_probable_guesses_are_read() -> None:
    clock = Clock({2: 1.0, 3: 1.1, 4: 1.2, 8: 2.6})
    chooser = Chooser(clock)
    clock.teach(chooser, 2, 3, 4, 8)

    assert chooser.choose([1, 1], [(0.9, 0.8, 0.7), (0.3, 0.1)]) == [2, 0]
    # With nothing to guess, and where nothing is known.
    assert chooser.choose([1, 1], [(), ()]) == [0, 0]
    assert chooser.choose([1], [(0.9,)]) == [0]


def test_a_step_of_many_texts_has_no_guesses() -> None:
    clock = Clock({80: 1.0})
    chooser = Chooser(clock)
    clock.teach(chooser, 80)

    assert chooser.choose([1] * 80, [(1.0,) * 15] * 80) == [0] * 80


def test_a_step_of_a_new_kind_is_tried_once_it_would_have_paid() -> None:
    clock = Clock({1: 1.0})
    chooser = Chooser(clock)
    clock.teach(chooser, 1)
    sure = (1.0,) * 3

    tries = next(i for i in range(100) if chooser.choose([1], [sure]) != [0])

    assert 2 < tries < 30


def test_a_step_that_was_disturbed_is_tried_again_later() -> None:
    clock = Clock({1: 1.0, 4: 50.0})
    chooser = Chooser(clock)
    clock.teach(chooser, 1, 4)
    sure = (1.0,) * 3
    before = chooser.choose([1], [sure])

    for _ in range(300):
        chooser.note(1, 1.0)

    assert before == [0]
    assert chooser.choose([1], [sure]) == [3]


def test_what_must_be_read_twice_is_guessed_less() -> None:
    seconds = {1: 1.0, 2: 1.3, 3: 1.6, 4: 1.9, 8: 3.1}
    clock = Clock(seconds)
    chooser = Chooser(clock)
    clock.teach(chooser, *seconds)
    chances = tuple(0.62**place for place in range(1, 8))

    once, again = (chooser.choose([1], [chances], replayed=replayed) for replayed in (False, True))

    assert once > again


# The text is the same.


def texts(model: Model, **options: Any) -> list[list[Piece]]:
    found: list[list[Piece]] = [[] for _ in range(options.get("n", 1))]
    for piece in generate(model.engine, model.tokenizer, [[5, 6, 7]], **options):
        found[piece.row].append(piece)
    return found


def told(found: list[list[Piece]]) -> list[Any]:
    return [
        ([piece.token for piece in row], "".join(piece.text for piece in row), row[-1].stopped_by)
        for row in found
    ]


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize(
    "options",
    [
        {"n": 3, "seed": 4},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
        {"min_tokens": 20, "ignore_eos": False, "logit_bias": {0: 3.0}},
        {"logit_bias": {9: 3.0}, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {"logprobs": 3},
        {"temperature": 0.0},
        {"thoughts": Thoughts(marks=KNOWN_MARKS[0], begun="", budget=6), "max_tokens": 40},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_hold_for_texts_that_are_guessed(model: Model, options: Any) -> None:
    options = {"max_tokens": 30, "temperature": 1.0, "ignore_eos": True, **options}
    expected = texts(model, **options)
    prediction = [piece.token for piece in expected[0]]
    prediction[9] += 1

    found = texts(model, **options, prediction=prediction)

    assert told(found) == told(expected)
    assert [[piece.top_logprobs for piece in row] for row in found] == [
        [piece.top_logprobs for piece in row] for row in expected
    ]
    assert found[0][-1].accepted > 2
    assert found[0][-1].predicted[1] > 2


@pytest.mark.usefixtures("many_guesses")
def test_a_text_ends_within_its_guesses_where_it_would_end_without(model: Model) -> None:
    whole = texts(model, max_tokens=30, temperature=1.0, ignore_eos=True)[0]
    prediction = [piece.token for piece in whole]
    for place in range(12, 20):
        stop = model.tokenizer.decode(prediction[place : place + 2])
        for how in (
            {"stop": [stop]},
            {"stop_token_ids": [prediction[place]]},
            {"max_tokens": place},
        ):
            options: Any = {"max_tokens": 30, "temperature": 1.0, "ignore_eos": True, **how}
            assert told(texts(model, **options, prediction=prediction)) == told(
                texts(model, **options)
            )


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_form_forces_is_guessed(model: Model, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"a_long_name": {"const": "a long value"}, "n": {"type": "integer"}},
        "required": ["a_long_name", "n"],
        "additionalProperties": False,
    }
    options: Any = {
        "constraint": json_grammar(Vocabulary(model.tokenizer), schema),
        "max_tokens": 200,
        "temperature": temperature,
    }

    expected, found = (texts(model, **options, draft=draft) for draft in (False, True))

    assert told(found) == told(expected)
    text = told(found)[0][1]
    assert re.match(r'\{"a_long_name":"a long value","n":', text)
    assert found[0][-1].accepted > 10


@pytest.mark.usefixtures("many_guesses")
def test_nobody_gives_way_for_a_guess(model: Model) -> None:
    # Of two texts the second will need another page, which is free as soon as the first has ended.
    session = Session(model.engine, model.tokenizer, rows=2, pages=2, prefix_cache=False)
    ids, lengths = [[7] * (PAGE - 10), [8] * (PAGE - 10)], (4, 40)
    expected = [
        [
            piece.token
            for piece in generate(
                model.engine, model.tokenizer, [one], max_tokens=length, ignore_eos=True
            )
        ]
        for one, length in zip(ids, lengths, strict=True)
    ]
    rows = [
        *session.add(ids[0], max_tokens=lengths[0], ignore_eos=True),
        *session.add(ids[1], max_tokens=lengths[1], ignore_eos=True, prediction=expected[1]),
    ]
    found: dict[int, list[int]] = {row: [] for row in rows}
    while not session.is_idle:
        for piece in session.step():
            found[piece.row].append(piece.token)

    assert [*found.values()] == expected
    assert session.load.put_aside == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": "heads"}, "has no extra heads"),
        ({"draft": "much"}, "pass True, False"),
        ({"prediction": [5, "x"]}, "is no text"),
        ({"prediction": 5}, "is no text"),
        ({"prediction": [-1]}, "is no text"),
        ({"prediction": [5, 10**6]}, "token 1000000, which is not below the vocabulary"),
    ],
)
def test_a_draft_that_cannot_be_is_refused(model: Model, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        texts(model, max_tokens=2, **options)


def test_sequential_heads_cannot_guess() -> None:
    bundle = random_bundle(num_ahead=1, ahead_kind="sequential")
    model = Model.from_bundle(bundle, backend="reference")

    with pytest.raises(InputError, match="heads of this model are sequential, and guess nothing"):
        texts(model, max_tokens=2, draft="heads")

    assert texts(model, max_tokens=2, draft=True)


def test_heads_that_read_nothing_cannot_guess(model: Model) -> None:
    with pytest.raises(InputError, match="heads=True"):
        model.session(rows=1).add([5], max_tokens=2, draft="heads")


def test_heads_have_no_part_in_a_cache(model: Model, tmp_path: Path) -> None:
    model.save_cache(tmp_path / "cache", [5, 6, 7])
    cache = model.load_cache(tmp_path / "cache")

    with pytest.raises(InputError, match="with a cache"):
        texts(model, max_tokens=2, cache=cache, draft="heads")


def test_what_a_form_forces_ends_before_a_thought_may_begin(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_them(_: object, unread: Any, chances: Any, **__: object) -> list[int]:
        del unread
        return [len(row) for row in chances]

    monkeypatch.setattr(Chooser, "choose", all_of_them)
    marks = next(marks for marks in KNOWN_MARKS if marks.opening == "[THINK]")
    options: Any = {
        # The mark is several tokens, which the form leaves no choice about.
        "constraint": regex_grammar(Vocabulary(model.tokenizer), r"\[THINK\][ab]{5}"),
        "thoughts": Thoughts(marks=marks, begun=None, budget=6),
        "max_tokens": 300,
        "temperature": 1.0,
        "ignore_eos": True,
    }

    expected, found = (texts(model, **options, draft=draft) for draft in (False, True))

    assert told(found) == told(expected)
    assert re.fullmatch("[ab]{5}", told(found)[0][1].strip())
