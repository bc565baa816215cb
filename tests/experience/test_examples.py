"""Which examples stand before a prompt, in what order, and how many there is room for."""

import logging
from itertools import islice
from pathlib import Path

import pytest

from nanochat.errors import InputError
from nanochat.experience.examples import Choice, ranked, similarity, traits_of
from nanochat.experience.library import Example, Lesson, Library
from nanochat.experience.opening import Experience
from nanochat.problems.sets import load
from tests.core.command_line import Run
from tests.parity.random_models import random_tokenizer

TOKENIZER = random_tokenizer()


def example(prompt: str, body: str = "\n    0\n}", family: str = "") -> Example:
    name = prompt.split("(")[0].removeprefix("fn ")
    return Example(problem=name, family=family or name, prompt=prompt, body=body)


EXAMPLES = [
    example("fn sum_of_squares(numbers: &[i32]) -> i32 {"),
    example("fn squares(numbers: &[i32]) -> Vec<i32> {"),
    example("fn is_even(n: i32) -> bool {"),
    example("fn is_odd(n: u8) -> bool {"),
    example("fn both(a: bool, b: bool) -> bool {"),
]
PROMPT = "/// Says whether it is.\nfn is_negative(value: i32) -> bool {"


def names(prompt: str, choice: Choice = "similar", seed: int = 0) -> list[str]:
    pairs = [(one, traits_of(one.prompt)) for one in EXAMPLES]
    return [one.problem for one in ranked(pairs, prompt, choice=choice, seed=seed)]


def experience(library: Library, room: int = 1000, **options: object) -> Experience:
    return Experience(library, TOKENIZER, room=room, **options)  # type: ignore[arg-type]


def library(budget: int = 1000, **parts: object) -> Library:
    return Library(learnt_from={}, budget=budget, **{"examples": tuple(EXAMPLES), **parts})  # type: ignore[arg-type]


def count(text: str) -> int:
    return len(TOKENIZER.encode(text))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("fn a(x: i8) -> i8 {", "/// Other.\nfn a(other: i8) -> i8 {", 2),
        ("fn a(x: i8) -> i8 {", "fn b(x: i8) -> i8 {", 1),
        ("fn a_b(x: i8) -> i8 {", "fn b_c(x: u8) -> u8 {", 1 / 3),
        ("fn a(x: i8) -> i8 {", "fn b(x: i8) -> u8 {", 1 / 3),
        ("fn a() {", "fn b() {", 1),
    ],
    ids=["same", "types", "a word", "a type", "nothing"],
)
def test_similarity_counts_words_of_names_and_tokens_of_types(
    first: str, second: str, expected: float
) -> None:
    assert similarity(traits_of(first), traits_of(second)) == pytest.approx(expected)
    assert similarity(traits_of(second), traits_of(first)) == pytest.approx(expected)


def test_the_most_similar_come_first() -> None:
    assert names(PROMPT)[:2] == ["is_even", "is_odd"]
    assert names("fn sum_of_cubes(data: &[i32]) -> i32 {")[0] == "sum_of_squares"


def test_a_random_order_follows_from_seed_and_prompt() -> None:
    orders = {tuple(names(PROMPT, "random", seed)) for seed in range(20)}
    others = {tuple(names(f"fn f{n}() {{", "random")) for n in range(20)}

    assert names(PROMPT, "random", 3) == names(PROMPT, "random", 3)
    assert len(orders) > 10
    assert len(others) > 10
    assert {order[0] for order in orders} == {one.problem for one in EXAMPLES}


def test_a_function_is_no_example_of_itself() -> None:
    itself = "/// Another comment.\nfn is_even(n: i32) -> bool {"

    assert "is_even" not in names(itself)
    assert "is_even" in names(itself.replace("i32", "i64"))


def test_a_family_gives_one_example() -> None:
    family = [example(f"fn f{n}() {{", family="f") for n in range(3)]
    pairs = [(one, traits_of(one.prompt)) for one in (*family, *EXAMPLES)]

    found = [*ranked(pairs, "fn f9() {", choice="similar", seed=0)]

    assert len([one for one in found if one.family == "f"]) == 1
    assert len(found) == 1 + len(EXAMPLES)


def test_the_best_example_stands_next_to_the_prompt() -> None:
    text = experience(library()).before(PROMPT)

    order = [text.index(f"fn {name}(") for name in names(PROMPT)]
    assert order == sorted(order, reverse=True)
    assert text.endswith(f"{EXAMPLES[2].prompt}{EXAMPLES[2].body}\n\n")


def test_lessons_come_before_examples() -> None:
    text = experience(library(lessons=(Lesson(id="L1", text="Mind zero."),))).before(PROMPT)

    assert text.startswith("// What was learnt from other functions:\n// - Mind zero.\n\nfn ")


@pytest.mark.parametrize("choice", ["similar", "random"])
def test_what_stands_before_a_prompt_is_within_the_budget(choice: Choice) -> None:
    sizes = set()
    for budget in range(0, 300, 11):
        text = experience(library(budget=budget), choice=choice).before(PROMPT)
        assert count(text) <= budget
        sizes.add(text.count("fn "))

    assert sizes >= {0, 1, 2, 3}


def test_the_prompt_and_the_answer_have_room_in_the_context() -> None:
    for room in range(count(PROMPT), 300, 11):
        text = experience(library(), room=room).before(PROMPT)
        assert 1 + count(text + PROMPT) <= max(room, 1 + count(PROMPT))


def test_nothing_before_a_prompt_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    one = experience(library(budget=500), room=50)

    with caplog.at_level(logging.WARNING, "nanochat"):
        texts = {one.before(PROMPT), one.before(f"/// Again.\n{PROMPT}")}

    assert texts == {""}
    assert len(caplog.records) == 1
    assert "of the 500 of its budget" in caplog.text


def test_an_empty_library_is_refused() -> None:
    with pytest.raises(InputError, match="no lesson and no example, so it changes nothing"):
        experience(library(examples=()))


def test_held_out_families_have_examples_of_others_only() -> None:
    problems = load("templates").problems
    train = [p for p in problems if p.split == "train"][::40]
    found = [
        Example(problem=p.id, family=p.family, prompt=p.prompt, body=p.reference) for p in train
    ]
    pairs = [(one, traits_of(one.prompt)) for one in found]

    for held_out in [p for p in problems if p.split == "held-out"][::300]:
        best = [*islice(ranked(pairs, held_out.prompt, choice="similar", seed=0), 8)]
        assert len(best) == 8
        assert held_out.family not in {one.family for one in best}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--experience", "none.json"], 2, "there is no file none.json"),
        (["--examples", "random"], 2, "pass one as --experience"),
        (["--experience-seed", "1"], 2, "pass one as --experience"),
        (["--text", "own", "--experience", "a.json"], 2, "--experience stands before problems"),
        (["--experience", "pyproject.toml"], 1, "is no JSON"),
    ],
    ids=["no file", "examples", "seed", "texts", "another file"],
)
def test_a_mistake_in_its_use_is_told_before_anything_is_written(
    run: Run, tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    result = run("eval", "nanochat-tiny", *options, "--out", tmp_path / "out")

    assert (result.code, said in result.err) == (code, True), result.err
    assert not (tmp_path / "out").exists()
