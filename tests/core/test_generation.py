"""Generation: a batch equals its rows, pieces add up to the text, and every end has its reason."""

import gc
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest

from nanochat.backends.reference.ops import Array, Leaf, ReferenceOps
from nanochat.backends.reference.state import ReferenceState
from nanochat.draws import Drawn, Draws
from nanochat.errors import ContextLengthError, InputError
from nanochat.generation.engine import Engine
from nanochat.generation.options import GenerationOptions, Piece, read_options
from nanochat.generation.session import generate
from nanochat.ops import Slot, Storage
from tests.parity.random_models import (
    random_config,
    random_tokenizer,
    reciting_bundle,
    silent_weights,
)

RandomEngine = Engine[Array, Leaf, ReferenceState]
TOKENIZER = random_tokenizer()
PROMPTS = [[TOKENIZER.bos, *TOKENIZER.encode(text)] for text in ("fn main", "to", "wörld, or")]


def engine_on(ops: ReferenceOps) -> RandomEngine:
    config = random_config()
    weights = ops.prepare(silent_weights(config))
    return Engine(config, weights, ops)


@cache
def random_engine() -> RandomEngine:
    return engine_on(ReferenceOps())


def recite(tokens: list[int], options: GenerationOptions) -> list[Piece]:
    ops = ReferenceOps()
    source = reciting_bundle(tokens)
    engine = Engine(source.config, ops.prepare(source.weights), ops)
    return list(generate(engine, TOKENIZER, [tokens[:1]], **options))


def texts(pieces: Sequence[Piece], num_rows: int) -> list[str]:
    return ["".join(p.text for p in pieces if p.row == row) for row in range(num_rows)]


def test_decoding_gives_the_logits_of_the_whole_sequence() -> None:
    engine = random_engine()
    ids = PROMPTS[0] + PROMPTS[2]

    state, first = engine.prefill(ids[:5], capacity=len(ids))
    steps = [first] + [engine.decode([token], state)[0] for token in ids[5:]]

    np.testing.assert_allclose(np.stack(steps), engine.logits(ids)[4:], atol=1e-4)


@pytest.mark.parametrize("kv_cache", get_args(Storage)[1:])
def test_narrow_keys_and_values_change_the_logits_a_little(kv_cache: Storage) -> None:
    ops, config = ReferenceOps(), random_config()
    engine = Engine(config, ops.prepare(silent_weights(config)), ops, kv_cache=kv_cache)

    _, rounded = engine.prefill(PROMPTS[0], capacity=20)

    _, exact = random_engine().prefill(PROMPTS[0], capacity=20)
    assert 0 < np.abs(rounded - exact).max() < 0.2 * np.abs(exact).max()


def test_an_unknown_kind_of_keys_and_values_is_refused() -> None:
    ops, config = ReferenceOps(), random_config()
    weights = ops.prepare(silent_weights(config))

    with pytest.raises(
        InputError, match=r"kv_cache='int2'.*choose one of float32, float16, int8, int4"
    ):
        Engine(config, weights, ops, kv_cache="int2")  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_prompt_may_be_read_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = PROMPTS[0]
    monkeypatch.setattr("nanochat.generation.engine.PREFILL_CHUNK", chunk)

    _, chunked = engine_on(ReferenceOps()).prefill(ids, capacity=len(ids))

    np.testing.assert_allclose(chunked, random_engine().logits(ids)[-1], atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_equals_its_rows(temperature: float) -> None:
    engine = random_engine()

    batch = list(
        generate(engine, TOKENIZER, PROMPTS, max_tokens=8, temperature=temperature, seed=5)
    )
    alone = [
        list(
            generate(engine, TOKENIZER, [ids], max_tokens=8, temperature=temperature, seed=5 + row)
        )
        for row, ids in enumerate(PROMPTS)
    ]

    assert [[p.token for p in batch if p.row == row] for row in range(3)] == [
        [p.token for p in pieces] for pieces in alone
    ]


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    engine = random_engine()

    first, again, other = (
        [
            p.token
            for p in generate(engine, TOKENIZER, PROMPTS[:1], temperature=1.0, max_tokens=9, seed=s)
        ]
        for s in (1, 1, 2)
    )

    assert first == again != other


def test_the_pieces_add_up_to_the_text_of_the_tokens() -> None:
    pieces = list(generate(random_engine(), TOKENIZER, PROMPTS[:1], max_tokens=20, temperature=2.0))

    assert texts(pieces, 1) == [TOKENIZER.decode(p.token for p in pieces)]


def test_the_last_piece_alone_has_the_reason() -> None:
    pieces = list(generate(random_engine(), TOKENIZER, PROMPTS[:1], max_tokens=3))

    assert [p.finish_reason for p in pieces] == [None, None, "length"]


def test_a_character_appears_when_its_last_byte_does() -> None:
    tokens = [TOKENIZER.bos, *TOKENIZER.encode("é☃"), TOKENIZER.eos]

    pieces = recite(tokens, {})

    assert [p.text for p in pieces] == ["", "é", "", "", "☃", ""]


def test_a_character_that_stays_incomplete_is_replaced_at_the_end() -> None:
    tokens = [TOKENIZER.bos, *TOKENIZER.encode("a☃")]

    pieces = recite(tokens, {"max_tokens": 3})

    assert texts(pieces, 1) == ["a\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("special", sorted(TOKENIZER.special_ids - {TOKENIZER.bos}))
def test_every_special_token_ends_the_text_and_is_not_part_of_it(special: int) -> None:
    tokens = [TOKENIZER.bos, *TOKENIZER.encode("xyz"), special]

    pieces = recite(tokens, {})

    assert (texts(pieces, 1), pieces[-1].finish_reason) == (["xyz"], "stop")


@pytest.mark.parametrize("stop", ["yz", ["never", "yz"]], ids=["one", "several"])
def test_a_stop_string_ends_the_text_and_is_not_part_of_it(stop: str | list[str]) -> None:
    tokens = [TOKENIZER.bos, *TOKENIZER.encode("wxyzv"), TOKENIZER.eos]

    pieces = recite(tokens, {"stop": stop})

    assert (texts(pieces, 1), pieces[-1].finish_reason) == (["wx"], "stop")


def test_the_start_of_a_stop_string_is_released_when_the_text_ends() -> None:
    tokens = [TOKENIZER.bos, *TOKENIZER.encode("wxy"), TOKENIZER.eos]

    pieces = recite(tokens, {"stop": "yz"})

    assert texts(pieces, 1) == ["wxy"]


def test_a_row_that_stopped_says_no_more_while_the_others_go_on() -> None:
    tokens = [TOKENIZER.bos, *TOKENIZER.encode("uvwxyz"), TOKENIZER.eos]
    ops = ReferenceOps()
    source = reciting_bundle(tokens)
    engine = Engine(source.config, ops.prepare(source.weights), ops)

    pieces = list(generate(engine, TOKENIZER, [tokens[:1], tokens[:5], tokens[:-1]]))

    assert texts(pieces, 3) == ["uvwxyz", "yz", ""]
    assert [sum(p.row == row for p in pieces) for row in range(3)] == [7, 3, 1]


def test_the_context_may_be_filled_to_the_last_token() -> None:
    ids = (PROMPTS[0] * 30)[:60]

    pieces = list(generate(random_engine(), TOKENIZER, [ids], max_tokens=4))

    assert len(pieces) == 4


def test_without_max_tokens_the_longest_prompt_says_how_much_room_there_is() -> None:
    ids = (PROMPTS[0] * 30)[:60]

    pieces = list(generate(random_engine(), TOKENIZER, [ids, PROMPTS[1]]))

    assert [sum(p.row == row for p in pieces) for row in range(2)] == [4, 4]


@pytest.mark.parametrize(
    ("length", "fix"), [(60, "max_tokens=4 or less"), (64, "to 63 tokens")], ids=["some", "none"]
)
def test_too_long_a_prompt_is_refused_with_the_room_that_is_left(length: int, fix: str) -> None:
    ids = (PROMPTS[0] * 30)[:length]

    with pytest.raises(ContextLengthError, match=fix):
        generate(random_engine(), TOKENIZER, [ids], max_tokens=5)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[]], {}, "no token"),
        ([[0, 10_000]], {}, "token 10000 is outside"),
        ([[-1]], {}, "token -1 is outside"),
        ([[0]], {"max_tokens": 0}, "max_tokens=0"),
        ([[0]], {"max_tokens": True}, "max_tokens=True"),
        ([[0]], {"temperature": -1.0}, "temperature=-1"),
        ([[0]], {"stop": ""}, "stop holds an empty string"),
        ([[0]], {"stop": [7]}, "holds 7"),
        ([[0]], {"stop": 3}, "stop=3 is no text"),
        (["abc"], {}, "'abc' is not one sequence of token ids"),
        ([0, 1], {}, "0 is not one sequence of token ids"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_before_anything_runs(
    prompts: Any, options: GenerationOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(random_engine(), TOKENIZER, prompts, **options)


def test_no_stop_strings_may_be_written_as_none() -> None:
    engine = random_engine()

    assert list(generate(engine, TOKENIZER, [[0]], max_tokens=5, stop=None)) == list(
        generate(engine, TOKENIZER, [[0]], max_tokens=5)
    )


def test_numbers_of_numpy_are_numbers() -> None:
    engine = random_engine()
    numbers: Any = {
        "max_tokens": np.int32(5),
        "temperature": np.float32(0.5),
        "top_k": np.int64(9),
        "seed": np.int64(3),
    }

    pieces = list(generate(engine, TOKENIZER, [np.array([0, 1])], **numbers))  # type: ignore[list-item] # an array is no Sequence

    assert pieces == list(
        generate(engine, TOKENIZER, [[0, 1]], max_tokens=5, temperature=0.5, top_k=9, seed=3)
    )


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    options: GenerationOptions = {"temprature": 1.0}  # type: ignore[typeddict-unknown-key] # the mistake under test

    with pytest.raises(
        TypeError, match=r"'temprature' \(did you mean temperature\?\): choose from max_tokens"
    ):
        generate(random_engine(), TOKENIZER, [[0]], **options)


def test_none_is_the_default_and_max_new_tokens_another_name() -> None:
    names = [name for name in GenerationOptions.__annotations__ if name != "seed"]
    absent: Any = dict.fromkeys(names)

    assert read_options(absent) == read_options({})
    assert read_options({"max_new_tokens": 3}).max_tokens == 3
    with pytest.raises(InputError, match="max_new_tokens=0 is not a number of tokens"):
        read_options({"max_new_tokens": 0})
    for logprobs in (1.0, True, 21, "2"):
        with pytest.raises(InputError, match="is no number of alternatives"):
            read_options({"logprobs": logprobs})  # type: ignore[typeddict-item]  # a mistake
    assert read_options({"logprobs": np.int64(2)}).logprobs == 2  # type: ignore[typeddict-item]
    with pytest.raises(InputError, match="two names of one number"):
        read_options({"max_new_tokens": 3, "max_tokens": 3})


class WatchedOps(ReferenceOps):
    """Counts the living states, and interrupts at the given step."""

    def __init__(self, interrupt_at: int) -> None:
        self.states: list[weakref.ref[ReferenceState]] = []
        self._calls_left = interrupt_at

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> ReferenceState:
        state = super().new_state(slots, rows=rows, capacity=capacity, pages=pages)
        self.states.append(weakref.ref(state))
        return state

    def sample(self, logits: Array, draws: Draws) -> Drawn:
        self._calls_left -= 1
        if not self._calls_left:
            raise KeyboardInterrupt
        return super().sample(logits, draws)

    def num_living(self) -> int:
        gc.collect()
        return sum(state() is not None for state in self.states)


def test_closing_the_iterator_frees_the_state() -> None:
    ops = WatchedOps(interrupt_at=0)
    pieces = generate(engine_on(ops), TOKENIZER, PROMPTS[:1])
    next(pieces), next(pieces)
    before = ops.num_living()

    pieces.close()

    assert (before, ops.num_living()) == (1, 0)


def test_an_interrupt_keeps_the_pieces_and_frees_the_state() -> None:
    ops = WatchedOps(interrupt_at=4)
    pieces: list[Piece] = []

    with pytest.raises(KeyboardInterrupt):
        pieces.extend(generate(engine_on(ops), TOKENIZER, PROMPTS[:1]))

    assert (len(pieces), ops.num_living()) == (3, 0)
