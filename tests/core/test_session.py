"""Texts that are written at the same time are those that each would be alone, whoever comes, leaves or waits."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nanochat.backends.reference.ops import Array, ReferenceOps
from nanochat.draws import Drawn, Draws, log_sum_exp
from nanochat.errors import ContextLengthError, InputError, NumericError
from nanochat.generation.engine import Engine
from nanochat.generation.options import GenerationOptions, Piece
from nanochat.generation.session import Session, generate
from nanochat.init import freeze
from nanochat.ops import Ops
from nanochat.rows import PAGE
from tests.parity.backends import loaded
from tests.parity.random_models import (
    random_config,
    random_tokenizer,
    random_weights,
    silent_weights,
)

AnyOps = Ops[Any, Any, Any]
AnyEngine = Engine[Any, Any, Any]

TOKENIZER = random_tokenizer()
# Attention alone, and what remembers more or depends on choices.
KINDS: dict[str, dict[str, Any]] = {
    "attention": {},
    "delta": {"layer_pattern": ("delta", "attention")},
    "experts": {"num_experts": 4, "experts_per_token": 2, "expert_width": 256},
}


@pytest.fixture(scope="module", params=["reference", "numba"])
def ops(request: pytest.FixtureRequest) -> Iterator[AnyOps]:
    yield from loaded(request.param)


def random_engine(*, context_length: int = 64) -> AnyEngine:
    ops, config = ReferenceOps(), random_config(context_length=context_length)
    return Engine(config, ops.prepare(silent_weights(config)), ops)


def engine_of(ops: AnyOps, kind: str, *, context_length: int = 400) -> AnyEngine:
    config = replace(random_config(context_length=context_length), **KINDS[kind])
    return Engine(config, ops.prepare(freeze(random_weights(config))), ops)


def alone(engine: AnyEngine, ids: list[int], options: GenerationOptions) -> list[list[int]]:
    """The tokens of each sample, each written by a call of its own."""
    tokens = []
    for i in range(options.get("n") or 1):
        own: GenerationOptions = {**options, "n": 1, "seed": options["seed"] + i}  # type: ignore[operator]
        tokens.append([piece.token for piece in generate(engine, TOKENIZER, [ids], **own)])
    return tokens


def test_a_text_whose_kept_beginning_is_given_up_waits_for_who_reads_it(ops: AnyOps) -> None:
    engine = engine_of(ops, "attention")
    ids = np.random.default_rng(0).integers(5, 60, 300).tolist()
    options: GenerationOptions = {"temperature": 1.0, "seed": 1}
    session = Session(engine, TOKENIZER, rows=4, capacity=400, pages=5)

    def write(prompt: list[int], **others: Any) -> int:
        (row,) = session.add(prompt, **options, **others)
        return row

    # What is kept of it has one row that goes on from it, and one that reads it again.
    write(ids, max_tokens=1)
    while not session.is_idle:
        session.step()
    write([*ids, 7], max_tokens=4, prompt_logprobs=0)
    write([*ids, 9], max_tokens=40)
    # A page that can be given up, but after those of the beginning.
    write([7] * 100, max_tokens=1)
    pieces = session.step()
    row = write([*ids, 8], max_tokens=5)
    while not session.is_idle:
        pieces += session.step()

    found = [piece.token for piece in pieces if piece.row == row]
    assert [found] == alone(engine, [*ids, 8], {"max_tokens": 5, **options})


def test_a_text_that_leaves_before_it_began_takes_nothing_of_its_prompt(ops: AnyOps) -> None:
    engine = engine_of(ops, "attention")
    ids = np.random.default_rng(0).integers(5, 60, 100).tolist()
    options: Any = {"max_tokens": 3, "seed": 1, "prompt_logprobs": 0}
    session = Session(engine, TOKENIZER, rows=2, capacity=200)
    first, second = session.add(ids, n=2, **options)
    # Of the prompt, 64 tokens.
    pieces = session.step()

    session.cancel(second)

    while not session.is_idle:
        pieces += session.step()
    assert [[piece.token for piece in pieces]] == alone(engine, ids, options)
    assert len(pieces[0].prompt_logprobs) == len(ids) - 1
    assert {piece.row for piece in pieces} == {first}


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_random_texts_are_those_that_each_would_be_alone(
    ops: AnyOps, kind: str, prefix_cache: bool
) -> None:
    rng = np.random.default_rng(1)
    engine = engine_of(ops, kind)
    # Fewer pages than rows would take at their longest: now and then a text must wait, or is put aside.
    session = Session(
        engine,
        TOKENIZER,
        rows=3,
        capacity=300,
        pages=5,
        prompt_tokens=40,
        prefix_cache=prefix_cache,
    )
    prefix = rng.integers(5, 60, 180).tolist()
    expected: dict[int, list[int]] = {}
    found: dict[int, list[int]] = defaultdict(list)
    cancelled: set[int] = set()
    alive: set[int] = set()
    accepted = 0
    for _ in range(60 if ops.name == "numba" else 20):
        if len(alive) < 6 and rng.random() < 0.4:
            # Many begin alike, so that pages are shared.
            ids = [
                *prefix[: rng.integers(0, 180)],
                *rng.integers(5, 60, rng.integers(1, 30)).tolist(),
            ]
            options: GenerationOptions = {
                "max_tokens": int(rng.integers(1, 20)),
                "n": int(rng.integers(1, 4)),
                "temperature": float(rng.choice([0.0, 1.0])),
                "frequency_penalty": float(rng.choice([0.0, 0.5])),
                "seed": int(rng.integers(1000)),
            }
            texts = alone(engine, ids, options)
            if rng.random() < 0.5:
                # Right for the first text, but for some tokens, and for others here and there.
                options["prediction"] = [token + (rng.random() < 0.2) for token in texts[0]]
            rows = session.add(ids, **options)
            alive |= set(rows)
            expected |= dict(zip(rows, texts, strict=True))
        if alive and rng.random() < 0.1:
            row = int(rng.choice(sorted(alive)))
            session.cancel(row)
            alive.remove(row)
            cancelled.add(row)
        for piece in session.step():
            assert piece.error is None
            accepted = max(accepted, piece.accepted)
            found[piece.row].append(piece.token)
            if piece.finish_reason is not None:
                alive.remove(piece.row)
    while not session.is_idle:
        for piece in session.step():
            accepted = max(accepted, piece.accepted)
            found[piece.row].append(piece.token)

    assert len(expected) > 8
    assert accepted > 1
    for row, tokens in expected.items():
        if row in cancelled:
            assert found[row] == tokens[: len(found[row])]
        else:
            assert found[row] == tokens


def test_samples_read_their_prompt_once() -> None:
    engine, read = random_engine(context_length=300), []
    draw = engine.draw

    def watch(state: Any, rows: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
        read.append(sum(map(len, tokens)))
        return draw(state, rows, tokens, *rest, **options)

    engine.draw = watch  # type: ignore[method-assign]
    ids = [7] * 200

    pieces = list(generate(engine, TOKENIZER, [ids], n=4, max_tokens=3, temperature=1.0, seed=3))

    assert {piece.row for piece in pieces} == {0, 1, 2, 3}
    assert sum(read) <= len(ids) + 4 * 2


def test_a_prompt_that_begins_like_a_kept_text_is_read_from_there_on() -> None:
    engine, read = random_engine(context_length=300), []
    draw = engine.draw

    def watch(state: Any, rows: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
        read.append(sum(map(len, tokens)))
        return draw(state, rows, tokens, *rest, **options)

    engine.draw = watch  # type: ignore[method-assign]
    session = Session(engine, TOKENIZER, rows=1)
    ids = list(range(5, 65)) * 2
    first = [piece.token for piece in session.pieces([ids], max_tokens=4)]
    read.clear()

    turn = [*ids, *first, 9, 8, 7]
    again = [piece.token for piece in session.pieces([turn], max_tokens=2)]

    # What is new: the last token of the answer, which nobody read before, and three more.
    assert read[0] == 4
    assert again == [piece.token for piece in generate(engine, TOKENIZER, [turn], max_tokens=2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_says_how_much_of_its_prompt_was_known(ops: AnyOps, kind: str) -> None:
    session = Session(engine_of(ops, kind), TOKENIZER, rows=2)
    rng = np.random.default_rng(3)
    ids = rng.integers(5, 60, 300).tolist()

    def texts(prompt: list[int], **options: Any) -> list[tuple[int, int]]:
        return [
            (piece.token, piece.cached)
            for piece in session.pieces([prompt], max_tokens=4, **options)
        ]

    first, again = texts(ids), texts(ids)
    turn = [*ids, *(token for token, _ in first), 9, 8]
    third, other = texts(turn), texts(turn, cache_salt="other")

    assert [token for token, _ in first] == [token for token, _ in again]
    assert [token for token, _ in third] == [token for token, _ in other]
    # What remembers more than keys and values goes on from ends only.
    known = 0 if kind == "delta" else len(ids) - 1
    assert {cached for _, cached in first} == {cached for _, cached in other} == {0}
    assert {cached for _, cached in again} == {known}
    # The last token of the answer was never read.
    assert {cached for _, cached in third} == {len(turn) - 3}


def test_two_prompts_that_begin_alike_share_nothing_with_another_salt() -> None:
    session = Session(random_engine(context_length=300), TOKENIZER, rows=2)
    rows = [
        *session.add([7] * 200, max_tokens=3, cache_salt="a"),
        *session.add([7] * 200, max_tokens=3, cache_salt="b"),
    ]

    found = {piece.row: piece.cached for _ in range(4) for piece in session.step()}

    assert found == dict.fromkeys(rows, 0)


def test_a_text_does_not_end_before_so_many_tokens() -> None:
    engine = engine_of(ReferenceOps(), "attention")
    end = min(TOKENIZER.stop_ids)
    # The end is what it wants to say.
    options: GenerationOptions = {"max_tokens": 8, "logit_bias": {end: 100.0}}

    def ends(**more: Any) -> tuple[int, str | None, str | int | None]:
        pieces = list(generate(engine, TOKENIZER, [[5, 6]], **{**options, **more}))
        assert [piece.token for piece in pieces][:-1].count(end) == 0 or more.get("ignore_eos")
        return len(pieces), pieces[-1].finish_reason, pieces[-1].stopped_by

    assert ends() == (1, "stop", end)
    assert ends(min_tokens=5) == (6, "stop", end)
    assert ends(min_tokens=8) == (8, "length", None)
    assert ends(ignore_eos=True) == (8, "length", None)


def test_a_text_ends_at_tokens_and_strings_that_are_named() -> None:
    engine = engine_of(ReferenceOps(), "attention")
    plain = [piece.token for piece in generate(engine, TOKENIZER, [[5, 6]], max_tokens=8)]
    third = plain[2]
    text = TOKENIZER.decode([third])

    (*_, by_token) = generate(engine, TOKENIZER, [[5, 6]], max_tokens=8, stop_token_ids=[third])
    (*_, by_string) = generate(engine, TOKENIZER, [[5, 6]], max_tokens=8, stop=[text])

    assert (by_token.finish_reason, by_token.stopped_by) == ("stop", third)
    assert (by_string.finish_reason, by_string.stopped_by) == ("stop", text)


@pytest.mark.parametrize("length", [1, 2, 65, 150])
@pytest.mark.parametrize("n", [1, 3])
def test_log_probabilities_of_a_prompt_are_those_of_its_logits(
    ops: AnyOps, length: int, n: int
) -> None:
    engine = engine_of(ops, "attention")
    ids = np.random.default_rng(length).integers(5, 60, length).tolist()
    session = Session(engine, TOKENIZER, rows=3)
    # What is known would spare the logits, too.
    list(session.pieces([ids], max_tokens=2))
    options: dict[str, Any] = {"temperature": 1.0, "n": n, "seed": 5}

    told = list(session.pieces([ids], max_tokens=3, prompt_logprobs=2, **options))
    alone = list(generate(engine, TOKENIZER, [ids], max_tokens=3, **options))
    scored = list(session.pieces([ids], max_tokens=0, prompt_logprobs=2, **options))

    assert sorted((piece.row, piece.token) for piece in told) == sorted(
        (piece.row, piece.token) for piece in alone
    )
    assert [(piece.token, piece.finish_reason) for piece in scored] == [(-1, "length")] * n
    logits = engine.logits(ids)[:, : TOKENIZER.vocab_size]
    firsts = {piece.row: piece for piece in reversed(told)}
    for piece in (*firsts.values(), *scored):
        assert len(piece.prompt_logprobs) == length - 1
        for row, token, (logprob, top) in zip(logits, ids[1:], piece.prompt_logprobs, strict=False):
            assert logprob == float(row[token]) - log_sum_exp(row)
            assert [each for each, _ in top] == np.argsort(-row, kind="stable")[:2].tolist()
            assert dict(top).get(token, logprob) == logprob


def test_a_text_whose_logits_are_not_finite_ends_with_an_error_and_the_others_go_on() -> None:
    class Broken(ReferenceOps):
        """Gives NaN to rows that have read a certain token last."""

        tokens_read: Array

        def embed(self, tokens: Array, table: Any) -> Array:
            self.tokens_read = tokens
            return super().embed(tokens, table)

        def project(self, x: Array, *linears: Any) -> tuple[Array, ...]:
            found = super().project(x, *linears)
            if found[0].shape[-1] == config.vocab_size:
                found[0][0, self.tokens_read[0][-found[0].shape[1] :] == 13] = np.nan
            return found

    config = random_config(context_length=64)
    broken: AnyOps = Broken()
    engine = Engine(config, broken.prepare(freeze(random_weights(config))), broken)
    session = Session(engine, TOKENIZER, rows=2)
    (good,) = session.add([5], max_tokens=3)
    session.step()
    (bad,) = session.add([13], max_tokens=3)

    pieces: list[Piece] = []
    while not session.is_idle:
        pieces += session.step()

    (ended,) = [piece for piece in pieces if piece.row == bad]
    assert ended.finish_reason == "error"
    assert isinstance(ended.error, NumericError)
    assert [piece.finish_reason for piece in pieces if piece.row == good][-1] in ("length", "stop")


def test_log_probabilities_are_those_of_the_models_logits() -> None:
    engine = random_engine(context_length=64)
    options: GenerationOptions = {"max_tokens": 5, "temperature": 0.7, "top_k": 5, "logprobs": 3}

    pieces = list(generate(engine, TOKENIZER, [[5, 6, 7]], **options))

    ids = [5, 6, 7]
    for piece in pieces:
        logits = engine.logits(ids)[-1][: TOKENIZER.vocab_size]
        assert piece.logprob == pytest.approx(logits[piece.token] - log_sum_exp(logits), abs=1e-5)
        assert [token for token, _ in piece.top_logprobs] == np.argsort(-logits)[:3].tolist()
        told = dict(piece.top_logprobs)
        assert told.get(piece.token, piece.logprob) == piece.logprob
        ids.append(piece.token)


def test_without_logprobs_none_are_told() -> None:
    (piece,) = generate(random_engine(), TOKENIZER, [[5]], max_tokens=1)

    assert (piece.logprob, piece.top_logprobs) == (None, ())


def test_each_text_may_have_a_seed_of_its_own() -> None:
    engine = random_engine()

    def texts(**options: Any) -> list[list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for piece in generate(
            engine, TOKENIZER, [[5], [5]], temperature=1.0, max_tokens=6, **options
        ):
            found[piece.row].append(piece.token)
        return [found[row] for row in sorted(found)]

    same, other = texts(seed=[7, 7]), texts(seed=[7, 8])

    assert same[0] == same[1] == other[0]
    assert other == texts(seed=7)


def test_no_seed_is_a_random_one_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    engine = random_engine()
    with caplog.at_level("INFO", logger="nanochat.generation.options"):
        drawn = [
            piece.token
            for piece in generate(
                engine, TOKENIZER, [[5]], temperature=1.0, max_tokens=9, seed=None
            )
        ]

    (seed,) = (int(record.getMessage().removeprefix("seed=")) for record in caplog.records)
    again = generate(engine, TOKENIZER, [[5]], temperature=1.0, max_tokens=9, seed=seed)
    assert [piece.token for piece in again] == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0 is not a number of texts: pass 1 to 128"),
        ({"n": 129}, "n=129"),
        ({"seed": [1, 2, 3]}, "seed holds 3 seeds for 1 texts"),
        ({"seed": "x"}, "seed='x' is no integer"),
        ({"logprobs": 21}, "logprobs=21 is no number of alternatives: pass 0 to 20"),
        ({"logprobs": True}, "logprobs=True"),
        ({"logit_bias": {10_000: 1.0}}, "10000"),
        ({"presence_penalty": 3.0}, "presence_penalty=3.0"),
        ({"min_tokens": -1}, "min_tokens=-1 is not a number of tokens: pass 0 or more"),
        ({"stop_token_ids": [3, "x"]}, "holds 'x': pass a list of ids"),
        ({"stop_token_ids": [10_000]}, "stop_token_ids id 10000 is not below"),
        ({"cache_salt": 3}, "cache_salt=3 is no text"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 is no number"),
        ({"max_tokens": 0}, "max_tokens=0 is not a number of tokens: pass 1 or more"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_by_name(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(generate(random_engine(), TOKENIZER, [[5]], **{"max_tokens": 2, **options}))


def test_a_text_that_has_ended_cannot_be_cancelled() -> None:
    session = Session(random_engine(), TOKENIZER, rows=1)
    (row,) = session.add([5], max_tokens=2)
    session.cancel(row)

    with pytest.raises(InputError, match=f"row {row} is no text that is being written"):
        session.cancel(row)
    assert session.is_idle
    assert session.step() == []


def fragile_engine(bad: int) -> AnyEngine:
    """An engine that fails when it reads a token."""

    class Fragile(ReferenceOps):
        def embed(self, tokens: Array, table: Any) -> Array:
            if bad in tokens:
                raise RuntimeError("a kernel failed")
            return super().embed(tokens, table)

    fragile, config = Fragile(), random_config(context_length=64)
    return Engine(config, fragile.prepare(freeze(random_weights(config))), fragile)


def test_what_was_chosen_before_a_step_failed_is_said_by_the_next_one() -> None:
    session = Session(fragile_engine(bad=13), TOKENIZER, rows=4)
    first, *others = session.add([5, 6], n=3, seed=0, max_tokens=1)
    assert [piece.row for piece in session.step()] == [first]
    (failing,) = session.add([13], max_tokens=1)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        session.step()
    session.cancel(failing)

    # They have ended where the failed step gave them their rows, and nobody has been told.
    assert not session.is_idle
    assert not any(map(session.holds, others))
    assert [(piece.row, piece.finish_reason) for piece in session.step()] == [
        (row, "length") for row in others
    ]
    assert session.is_idle


def test_a_call_of_which_a_step_fails_raises_what_failed_and_leaves_nothing() -> None:
    # The end of the second prompt is read in the step in which two texts of the first end as they get their rows.
    session = Session(fragile_engine(bad=13), TOKENIZER, rows=4, prompt_tokens=4)
    options: GenerationOptions = {"max_tokens": 1, "n": 3, "seed": 0}
    with pytest.raises(RuntimeError, match="a kernel failed"):
        list(session.pieces([[5, 6], [7, 7, 13]], **options))

    assert session.is_idle
    assert len(list(session.pieces([[5, 6]], **options))) == 3


def test_what_could_never_fit_is_refused_when_it_is_added() -> None:
    session = Session(random_engine(context_length=400), TOKENIZER, rows=2, pages=1)

    with pytest.raises(ContextLengthError, match=f"do not fit into a session for {PAGE} tokens"):
        session.add([5] * 100, max_tokens=60)


def test_a_call_that_waits_for_its_texts_is_alone_in_a_session() -> None:
    session = Session(random_engine(), TOKENIZER, rows=2)
    session.add([5], max_tokens=2)

    with pytest.raises(InputError, match="other texts are being written"):
        session.pieces([[6]])


def test_samples_of_a_prompt_of_one_token_give_their_pages_back() -> None:
    engine = engine_of(ReferenceOps(), "attention")
    session = Session(engine, TOKENIZER, rows=4, prefix_cache=False)
    free = session._state.free_pages

    for _ in range(3):
        assert len([*session.pieces([[9]], n=4, max_tokens=3, temperature=1.0)]) <= 12

    assert session._state.free_pages == free


class TornOps(ReferenceOps):
    """Is interrupted once, when a step has been computed and nobody knows it yet."""

    calls_left = -1

    def sample(self, logits: Array, draws: Draws) -> Drawn:
        self.calls_left -= 1
        if not self.calls_left:
            raise KeyboardInterrupt
        return super().sample(logits, draws)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", [1, 2, 5])
def test_a_step_that_was_interrupted_leaves_no_trace(kind: str, when: int) -> None:
    ops = TornOps()
    engine = engine_of(ops, kind)
    ids = [[5, 6, 7], [8, 9]]
    expected = [alone(engine, each, {"max_tokens": 9, "seed": 0}) for each in ids]
    longer = [*ids[0], *expected[0][0][:4]]
    after = alone(engine, longer, {"max_tokens": 5, "seed": 0})
    session = Session(engine, TOKENIZER, rows=2)
    rows = [session.add(each, max_tokens=9)[0] for each in ids]
    found: dict[int, list[int]] = defaultdict(list)
    ops.calls_left = when

    interrupted = 0
    while not session.is_idle:
        try:
            pieces = session.step()
        except KeyboardInterrupt:
            interrupted += 1
            continue
        for piece in pieces:
            found[piece.row].append(piece.token)
    (again,) = session.add(longer, max_tokens=5)
    while not session.is_idle:
        for piece in session.step():
            found[piece.row].append(piece.token)

    assert interrupted == 1
    assert [[found[row]] for row in rows] == expected
    assert found[again] == after[0]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_of_a_text_that_ends_with_an_interrupted_step(kind: str) -> None:
    ops = TornOps()
    engine = engine_of(ops, kind)
    ids = [5, 6, 7, 8, 9]
    expected = alone(engine, ids, {"max_tokens": 6, "seed": 0})
    session = Session(engine, TOKENIZER, rows=1)
    ops.calls_left = 4

    with pytest.raises(KeyboardInterrupt):
        list(session.pieces([ids], max_tokens=6))
    ops.calls_left = -1

    assert [piece.token for piece in session.pieces([ids], max_tokens=6)] == expected[0]


class FailingForm:
    """Fails as a library may, at its second token."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._pushed = 0

    def matcher(self) -> "FailingForm":
        return FailingForm()

    def fill(self, allowed: Any) -> None:
        allowed[:] = 0xFFFFFFFF

    def push(self, token: int) -> None:
        del token
        self._pushed += 1
        if self._pushed == 2:
            raise RuntimeError("a library failed")

    def count(self, tokens: Any) -> int:
        return len(tokens)

    def forced(self) -> list[int]:
        return []

    def copy(self) -> "FailingForm":
        return FailingForm()


def test_a_text_that_fails_takes_nothing_from_the_others(
    ops: AnyOps, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(ops, "attention")
    session = Session(engine, TOKENIZER, rows=3)
    options: Any = {"max_tokens": 6, "ignore_eos": True, "seed": 0}
    expected = alone(engine, [5, 6], options)
    first = session.add([5, 6], **options)[0]
    failing = session.add([5, 7], **options, constraint=FailingForm())[0]
    last = session.add([5, 6], **options)[0]
    found: dict[int, list[Piece]] = defaultdict(list)
    while not session.is_idle:
        for piece in session.step():
            found[piece.row].append(piece)

    for row in (first, last):
        assert [piece.token for piece in found[row]] == expected[0]
    assert len(found[failing]) == 2
    assert str(found[failing][-1].error) == "this text could not go on: the log says why"
    assert "a library failed" in caplog.text


def test_a_call_that_is_refused_leaves_no_text() -> None:
    session = Session(random_engine(), TOKENIZER, rows=2)

    with pytest.raises(InputError, match="seed=-1"):
        session.add([5], n=2, seed=[0, -1], max_tokens=2)

    assert session.is_idle


def test_seeds_begin_again_behind_the_last() -> None:
    engine = random_engine()
    options: Any = {"temperature": 1.0, "max_tokens": 6}
    both = list(generate(engine, TOKENIZER, [[5]], n=2, seed=2**63 - 1, **options))
    first = list(generate(engine, TOKENIZER, [[5]], seed=0, **options))

    assert [piece.token for piece in both if piece.row == 1] == [piece.token for piece in first]
