"""Thoughts are told from the answer, wherever a piece ends, and a budget ends them, whoever is written beside."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import InputError
from nanochat.generation.engine import Engine
from nanochat.generation.mind import Mind
from nanochat.generation.options import Piece, tokens_after
from nanochat.generation.session import Session, generate
from nanochat.lm import Model
from nanochat.text.chat import chat_prompt, render
from nanochat.text.thinking import KNOWN_MARKS, Marks, Thoughts, ThoughtSplitter, marks_of
from nanochat.text.tokenizer import StreamDecoder
from tests.core.real_templates import real_templates
from tests.core.test_chat_template import TOKENIZER as LLAMA_3
from tests.core.thinking_models import ASKED, OPENED, PLAIN, SWITCHED, THOUGHT, thinker, tokenizer
from tests.parity.backends import loaded
from tests.parity.random_models import random_config, random_tokenizer, silent_weights

MARKS = KNOWN_MARKS[0]
TIME_IS_UP = "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
TEXTS = {
    "a thought": ("<think>\nHm.\n</think>\n\nYes\n", "Hm.", "Yes\n"),
    "white space before it": ("\n <think>Hm.</think>Yes", "Hm.", "Yes"),
    "white space inside it": ("<think>a\n\n b </think> Yes", "a\n\n b", "Yes"),
    "an empty one": ("<think>\n\n</think>\n\nYes", "", "Yes"),
    "no thought": (" Yes <think>no</think>", "", " Yes <think>no</think>"),
    "two": ("<think>a</think>\n<think>b</think>\nYes", "a\n\nb", "Yes"),
    "an end alone": ("Yes</think>", "", "Yes</think>"),
    "what is like a mark": ("<think>a < b </thin </think>y <think", "a < b </thin", "y <think"),
    "one that does not end": ("<think>a </thi", "a </thi", ""),
    "the start of a mark": ("\n<thi", "", "\n<thi"),
    "nothing": ("", "", ""),
}


def split(thoughts: Thoughts, parts: list[str]) -> tuple[str, str]:
    splitter = ThoughtSplitter(thoughts)
    found = [*map(splitter.push, parts), splitter.flush()]
    return "".join(thought for thought, _ in found), "".join(said for _, said in found)


@pytest.mark.parametrize("name", TEXTS)
@given(data=st.data())
def test_a_text_is_told_apart_alike_however_it_is_cut(name: str, data: st.DataObject) -> None:
    text, thought, said = TEXTS[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert split(Thoughts(marks=MARKS), parts) == (thought, said)


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.opening.strip())
def test_a_thought_that_the_prompt_begins_ends_with_the_closing_mark(marks: Marks) -> None:
    thoughts = Thoughts(marks=marks, begun="\n")

    assert split(thoughts, [*f"Hm.\n{marks.closing}\n\nYes"]) == ("Hm.", "Yes")


def test_nothing_is_shown_that_may_be_white_space_around_a_thought_or_a_mark() -> None:
    splitter = ThoughtSplitter(Thoughts(marks=MARKS))

    shown = [splitter.push(part) for part in ("<think>", "\n", "a", "\n\n", "b</", "think>", "\n")]

    assert shown == [("", ""), ("", ""), ("a", ""), ("", ""), ("\n\nb", ""), ("", ""), ("", "")]


# Of some real templates: whether the prompt begins a thought, and whether it ends one, by default, with thinking, and
# without.
OPENINGS = {
    "trl/qwen3": [(None, False), (None, False), (None, True)],
    "axolotl/qwen3": [("\n\n", False), ("\n\n", False), (None, True)],
    "trl/qwen3_5_think": [("\n", False), ("\n", False), (None, True)],
    "trl/qwen3_5_nothink": [(None, True), ("\n", False), (None, True)],
    "axolotl/qwen3_5": [("\n\n", False), ("\n\n", False), (None, True)],
    "trl/qwen3_6": [("\n", False), ("\n", False), (None, True)],
    "trl/glm4moe": [(None, False), (None, False), (None, True)],
    "trl/nemotron_3_nano": [("\n", False), ("\n", False), (None, True)],
    "axolotl/exaone4": [(None, True), ("\n", False), (None, True)],
    "trl/gemma4_v5": [(None, False), (None, False), (None, False)],
}


@pytest.mark.parametrize("name", OPENINGS)
def test_what_a_real_template_writes_of_a_thought_is_known(name: str) -> None:
    question = "Is <think> closed by </think>? <think>"
    found = []
    for thinking in (None, True, False):
        prompt = chat_prompt(
            question, LLAMA_3, chat_template=real_templates()[name], thinking=thinking
        )
        assert prompt.thoughts is not None
        found.append((prompt.thoughts.begun, prompt.thoughts.ended))

    assert found == OPENINGS[name]


@pytest.mark.parametrize("name", ["trl/deepseekv3", "trl/deepseek_r1_distill"])
def test_a_template_that_always_begins_a_thought_has_no_switch(name: str) -> None:
    template = real_templates()[name]

    for thinking in (None, True):
        prompt = chat_prompt("Hi", LLAMA_3, chat_template=template, thinking=thinking)
        assert prompt.thoughts == Thoughts(marks=MARKS, begun="\n")
        assert prompt.ids == render("Hi", LLAMA_3, chat_template=template)
    with pytest.raises(InputError, match=r"no switch for it: pass thinking_budget=0"):
        chat_prompt("Hi", LLAMA_3, chat_template=template, thinking=False)


def test_a_template_that_opens_a_turn_without_being_asked_may_begin_a_thought() -> None:
    always = "{{ messages[0].content }}<|eot_id|>"

    for end, begun in (("<think>\n", "\n"), ("", None)):
        prompt = chat_prompt(
            "<think> is it?", LLAMA_3, chat_template=always + end + "{# </think> #}"
        )
        assert prompt.thoughts == Thoughts(marks=MARKS, begun=begun)


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.opening.strip())
def test_one_mark_is_enough_to_know_a_template_by(marks: Marks) -> None:
    for mark in (marks.opening, marks.closing):
        assert marks_of("{{ " + repr(mark) + " }}") == marks
    assert marks_of("{{ 'I think' }}") is None


def test_a_switch_gives_the_prompt_of_its_variable() -> None:
    template = real_templates()["trl/qwen3"]

    for thinking in (True, False):
        assert chat_prompt("Hi", LLAMA_3, chat_template=template, thinking=thinking).ids == render(
            "Hi",
            LLAMA_3,
            chat_template=template,
            chat_template_kwargs={"enable_thinking": thinking},
        )


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (PLAIN, {"thinking": True}, r"thinking=True \(--think\), but .* knows no thinking"),
        (PLAIN, {"thinking_budget": 5}, r"thinking_budget=5 .*leave it out, or pass a template"),
        (SWITCHED, {"thinking_budget": -1}, "thinking_budget=-1 is no number of tokens"),
        (SWITCHED, {"thinking_budget": True}, "thinking_budget=True is no number"),
        (SWITCHED, {"thinking": "yes"}, "thinking='yes': pass True, False"),
        (
            SWITCHED,
            {"thinking": True, "chat_template_kwargs": {"enable_thinking": True}},
            "say the same: pass one of them",
        ),
        (OPENED, {"thinking": False}, r"--thinking-budget 0\), which ends every thought at once"),
    ],
    ids=str,
)
def test_what_a_template_cannot_do_is_refused(
    template: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        chat_prompt("Hi", tokenizer(template), **options)


def test_a_model_that_never_thinks_may_be_told_not_to() -> None:
    assert chat_prompt("Hi", tokenizer(PLAIN), thinking=False).thoughts is None
    assert chat_prompt("Hi", random_tokenizer(), thinking=False).thoughts is None
    with pytest.raises(InputError, match="knows no thinking"):
        chat_prompt("Hi", random_tokenizer(), thinking=True)


# Of a model.


@cache
def model(template: str, *, special: bool = False) -> Model:
    return Model.from_bundle(thinker(template, special=special), backend="reference")


@pytest.mark.parametrize("template", [SWITCHED, ASKED, OPENED], ids=["model", "asked", "always"])
@pytest.mark.parametrize("special", [False, True], ids=["text", "special"])
def test_the_answer_comes_without_the_thought_that_comes_apart(
    template: str, special: bool
) -> None:
    thinking = model(template, special=special)

    assert thinking.chat("Hi") == "xyz"
    assert "".join(thinking.stream_chat("Hi")) == "xyz"
    assert thinking.chat("Hi", reasoning=True) == {
        "role": "assistant",
        "content": "xyz",
        "reasoning_content": THOUGHT,
    }
    parts = [*thinking.stream_chat("Hi", reasoning=True)]
    assert parts == [*(("reasoning", c) for c in THOUGHT), *(("content", c) for c in "xyz")]


def test_a_model_whose_template_knows_no_thinking_is_shown_as_it_is() -> None:
    assert model(PLAIN).chat("Hi") == f"<think>{THOUGHT}</think>\nxyz"


@pytest.mark.parametrize("template", [SWITCHED, ASKED], ids=["model", "asked"])
def test_without_thinking_there_is_none(template: str) -> None:
    assert model(template).chat("Hi", thinking=False, reasoning=True) == {
        "role": "assistant",
        "content": "xyz",
    }


def raw(thinking: Model, **options: Any) -> str:
    """All that follows the prompt."""
    prompt = chat_prompt("Hi", thinking.tokenizer, thinking_budget=options.pop("budget"))
    pieces = thinking.pieces([prompt.ids], thoughts=prompt.thoughts, **options)
    return thinking.tokenizer.decode([piece.token for piece in pieces], skip_specials=False)


@pytest.mark.parametrize("budget", range(1, 8))
@pytest.mark.parametrize("special", [False, True], ids=["text", "special"])
def test_a_thought_ends_after_its_budget(budget: int, special: bool) -> None:
    thinking = model(SWITCHED, special=special)

    answer = thinking.chat("Hi", thinking_budget=budget, reasoning=True)

    assert answer["content"] == "xyz"
    assert answer["reasoning_content"] == f"{THOUGHT[:budget]}\n\n{TIME_IS_UP}"
    assert raw(thinking, budget=budget) == (
        f"<think>{THOUGHT[:budget]}\n\n{TIME_IS_UP}\n</think>\n\nxyz<|eot_id|>"
    )


@pytest.mark.parametrize("budget", [8, 9, 1000, None])
def test_a_thought_within_its_budget_ends_as_it_likes(budget: int | None) -> None:
    assert raw(model(OPENED), budget=budget) == f"{THOUGHT}</think>\nxyz<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "written"), [(SWITCHED, "<think>"), (OPENED, "")], ids=["model", "always"]
)
def test_a_budget_of_0_is_an_empty_thought_as_templates_write_it(
    template: str, written: str
) -> None:
    thinking = model(template)

    assert raw(thinking, budget=0) == f"{written}\n\n</think>\n\nxyz<|eot_id|>"
    assert thinking.chat("Hi", thinking_budget=0, reasoning=True) == {
        "role": "assistant",
        "content": "xyz",
    }


def test_what_the_prompt_holds_of_an_empty_thought_is_not_doubled() -> None:
    assert Thoughts(marks=MARKS, begun="\n").ending(empty=True) == "\n</think>\n\n"
    assert Thoughts(marks=MARKS, begun="\nOK").ending(empty=True) == "\n\n</think>\n\n"


def overrun(text: str) -> list[bool]:
    """Whether a thought without a budget would be ended in place of each token of a text."""
    mind = Mind(Thoughts(marks=MARKS, begun="", budget=0), TOKENIZER)
    decoder = StreamDecoder(TOKENIZER)
    found = []
    for token in TOKENIZER.encode_bytes(text.encode("utf-8", "surrogateescape")):
        found.append(mind.is_over(token, decoder))
        mind.push(decoder.push(token), token)
    return found


def test_a_thought_is_not_ended_inside_a_character_or_its_own_mark() -> None:
    # Characters of three tokens, and a mark of many.
    assert overrun("\u20ac\u20ac") == [True, False, False] * 2
    assert not any(overrun("</think>"))
    assert overrun("<a") == [False, True]


def test_a_thought_that_only_seems_to_begin_its_mark_is_ended() -> None:
    assert overrun("<" * 12) == [False] * 8 + [True] * 4


def test_a_mark_that_is_a_special_token_is_no_text_of_the_answer() -> None:
    codec = tokenizer(SWITCHED, special=True)
    mind = Mind(Thoughts(marks=MARKS), codec)
    text = "<think>a</think>b<think>c</think>"

    found = [
        mind.push(codec.token_bytes(token).decode(), token)
        for token in codec.encode(text, specials=True)
    ]

    assert ["".join(parts) for parts in zip(*found, strict=True)] == ["a", "bc"]


def test_a_stop_string_in_a_thought_ends_nothing() -> None:
    assert model(OPENED).chat("Hi", stop=["c", "z"]) == "xy"


def test_forced_tokens_count_and_have_no_probability() -> None:
    thinking = model(OPENED)
    prompt = chat_prompt("Hi", thinking.tokenizer, thinking_budget=3)

    pieces = [*thinking.pieces([prompt.ids], thoughts=prompt.thoughts, max_tokens=20, logprobs=1)]

    assert len(pieces) == 20
    assert [piece.is_forced for piece in pieces] == [False] * 3 + [True] * 17
    assert [piece.logprob is None for piece in pieces] == [piece.is_forced for piece in pieces]
    assert pieces[-1].finish_reason == "length"


def test_a_text_that_may_think_is_longer_by_default() -> None:
    config = random_config(context_length=9000)
    thoughts = Thoughts(marks=MARKS)

    lengths = [
        tokens_after(10, None, config, thoughts=given)
        for given in (
            None,
            thoughts,
            Thoughts(marks=MARKS, budget=100),
            Thoughts(marks=MARKS, ended=True),
        )
    ]

    assert lengths == [256, 4352, 420, 256]


# Beside others: random texts, all of which begin inside a thought.

TOKENIZER = random_tokenizer()
PROMPTS = [[TOKENIZER.bos, *TOKENIZER.encode(text)] for text in ("fn main", "to", "wörld, or")]
BUDGETS = (0, 5, 30, None)


@pytest.fixture(scope="module")
def engine() -> Any:
    for ops in loaded("numba"):
        config = random_config(context_length=400)
        yield Engine(config, ops.prepare(silent_weights(config)), ops)


def options(budget: int | None, seed: int) -> dict[str, Any]:
    thoughts = Thoughts(marks=MARKS, begun="", budget=budget)
    never = dict.fromkeys(TOKENIZER.special_ids, -100.0)
    given = {"max_tokens": 140, "temperature": 1.0, "seed": seed, "logit_bias": never}
    return {"thoughts": thoughts, **given}


def run(session: Session[Any]) -> list[Piece]:
    pieces: list[Piece] = []
    while not session.is_idle:
        pieces += session.step()
    return pieces


def tokens(pieces: list[Piece], row: int) -> list[int]:
    return [piece.token for piece in pieces if piece.row == row]


def test_a_budget_ends_a_thought_beside_others_as_it_does_alone(engine: Any) -> None:
    cases = [(ids, budget) for ids in PROMPTS for budget in BUDGETS]
    alone = [
        tokens([*generate(engine, TOKENIZER, [ids], **options(budget, row))], 0)
        for row, (ids, budget) in enumerate(cases)
    ]
    session = Session(engine, TOKENIZER, rows=5, prompt_tokens=7)

    for row, (ids, budget) in enumerate(cases):
        session.add(ids, **options(budget, row))
    pieces = run(session)

    assert [tokens(pieces, row) for row in range(len(cases))] == alone
    for row, (_, budget) in enumerate(cases):
        own = [piece for piece in pieces if piece.row == row]
        forced = [piece.is_forced for piece in own]
        assert len(own) == 140
        assert (True in forced) == (budget is not None)
        # A character that was begun may be ended first.
        assert budget is None or forced.index(True) in range(budget, budget + 9)
        assert (TIME_IS_UP in "".join(piece.reasoning for piece in own)) == bool(budget)


def test_a_text_that_is_put_aside_is_the_same_later(engine: Any) -> None:
    alone = [
        tokens([*generate(engine, TOKENIZER, [ids], **options(5, row))], 0)
        for row, ids in enumerate(PROMPTS)
    ]
    # Pages for one text and a half.
    session = Session(engine, TOKENIZER, rows=3, pages=3)

    for row, ids in enumerate(PROMPTS):
        session.add(ids, **options(5, row))
    pieces = run(session)

    assert [tokens(pieces, row) for row in range(3)] == alone


@pytest.mark.parametrize("budget", [0, 2])
def test_texts_of_one_prompt_think_each_for_itself(engine: Any, budget: int) -> None:
    together = [*generate(engine, TOKENIZER, PROMPTS[:1], n=4, **options(budget, 0))]

    for row in range(4):
        alone = [*generate(engine, TOKENIZER, PROMPTS[:1], **options(budget, row))]
        assert tokens(together, row) == tokens(alone, 0)
