"""What a writer may say, and what is refused with a reason that it can act on."""

import json

import pytest

from nanochat.errors import InputError
from nanochat.experience.leaks import Secret, leak, secrets_of
from nanochat.experience.library import Lesson
from nanochat.experience.operations import apply, read_lessons, read_operations
from nanochat.problems.own import read_problems

LESSONS = [
    Lesson(id="L1", text="Mind empty lists.", uses=2, batch=1),
    Lesson(id="L2", text="Mind overflow.", uses=1, batch=1),
]
SECRETS = {Secret("54321", "a result of a test")}
(CLIPPED,) = read_problems(
    """
// inputs: text in one of "banana" "kiwi"
// edges: ("banana", [7, 8, 9], -12345)
fn clipped(text: &str, parts: &[i32], least: i32) -> i32 {
    if parts.is_empty() { least } else { parts[0].max(least) }
}
""",
    "clipped.rs",
)


def operations(*rows: object) -> str:
    return json.dumps({"operations": rows})


ADD = {"operation": "ADD", "text": "Mind zero."}
KEEP = {"operation": "KEEP", "id": "L1"}

REFUSED = {
    "prose": ("I would add a lesson.", "the answer holds no JSON object"),
    "cut off": (operations(ADD)[:-3], "the answer holds no JSON object"),
    "a list": ("[]", "the answer holds no JSON object"),
    "another object": ('{"lessons": []}', 'write {"operations": [...]}'),
    "more than asked for": ('{"operations": [], "note": ""}', 'write {"operations": [...]}'),
    "a field twice": ('{"operations": [], "operations": []}', "names a field twice"),
    "a word": (operations("ADD"), '"ADD" is no operation'),
    "another operation": (
        operations({"operation": "MERGE", "id": "L1"}),
        "with one of ADD, UPDATE, DELETE, KEEP",
    ),
    "no text": (operations({"operation": "ADD"}), "is no ADD: give it text, and nothing else"),
    "an id of a new one": (
        operations({**ADD, "id": "L9"}),
        "is no ADD: give it text, and nothing else",
    ),
    "no id": (
        operations({"operation": "UPDATE", "text": "a"}),
        "is no UPDATE: give it id and text",
    ),
    "an unknown id": (
        operations({"operation": "DELETE", "id": "L3"}),
        'there is no lesson "L3": name one of L1, L2',
    ),
    "a number as id": (operations({"operation": "KEEP", "id": 1}), "there is no lesson 1"),
    "an id twice": (
        operations(KEEP, {"operation": "DELETE", "id": "L1"}),
        "there are two operations on L1",
    ),
    "an empty text": (operations({"operation": "ADD", "text": " \n"}), "is no lesson"),
    "a number": (operations({"operation": "ADD", "text": 3}), "3 is no lesson"),
    "commands of a terminal": (operations({**ADD, "text": "\x1b[2J"}), "is no lesson"),
    "a long text": (
        operations({**ADD, "text": "word " * 99}),
        "has 494 letters: write at most 400",
    ),
    "a value of a test": (
        operations({**ADD, "text": "Return 54_321 then."}),
        "tells a result of a test (54321)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_as_asked_for_is_refused_with_a_reason(name: str) -> None:
    answer, said = REFUSED[name]

    with pytest.raises(InputError) as error:
        read_operations(answer, LESSONS, secrets=SECRETS)

    assert said in str(error.value)


@pytest.mark.parametrize(
    "around",
    ["{}", "```json\n{}\n```", "First ...\n```\nnone\n```\nso:\n\n```json\n{}\n```\n", "Here: {}."],
    ids=["alone", "fenced", "the last fence", "in a sentence"],
)
def test_words_and_fences_around_an_answer_do_not_matter(around: str) -> None:
    found = read_operations(around.replace("{}", operations(ADD, KEEP)), LESSONS, secrets=())

    assert [one.kind for one in found] == ["ADD", "KEEP"]


def test_operations_change_what_they_name_and_all_are_numbered_again() -> None:
    rows = [
        ADD,
        {"operation": "DELETE", "id": "L1"},
        {"operation": "UPDATE", "id": "L2", "text": "Mind\n overflow of i8."},
    ]

    found = apply(LESSONS, read_operations(operations(*rows), LESSONS, secrets=()), batch=7)

    assert found == (
        Lesson(id="L1", text="Mind overflow of i8.", uses=2, batch=7),
        Lesson(id="L2", text="Mind zero.", uses=1, batch=7),
    )


def test_what_is_kept_was_used_and_what_is_not_named_stays() -> None:
    found = apply(LESSONS, read_operations(operations(KEEP), LESSONS, secrets=()), batch=7)

    assert found == (Lesson(id="L1", text="Mind empty lists.", uses=3, batch=7), LESSONS[1])


def test_lessons_are_few() -> None:
    answer = '{"lessons": ["a", "b", "c"]}'

    assert read_lessons(answer, most=3, secrets=()) == ("a", "b", "c")
    with pytest.raises(InputError, match="3 lessons are too many: write at most 2"):
        read_lessons(answer, most=2, secrets=())


LEAKS = {
    "a call": 'For clipped("banana", &[7, 8, 9], -12345) take the first.',
    "a call with types": 'clipped( "banana", &[7_i32, 8_i32, 9_i32], -12345_i32 )',
    "a list": "The parts [7,8, 9] come first.",
    "a number": "The least is 12345.",
    "a number in groups": "It is -12_345, mostly.",
    "a text": "Words such as `banana` are passed on.",
    "a result": "Then 98765 is returned.",
    "the reference": "Write if parts.is_empty() {least} else {parts[0] .max(least)}.",
}
FREE = {
    "a small number": "Return 0 or 7 for an empty list.",
    "a part of a number": "Never write 1234567 or 12345.5.",
    "a word": "A banana is a fruit.",
    "a method": "Use max and is_empty.",
    "a quote that is not closed": "It's \"so",
}


@pytest.mark.parametrize("name", LEAKS)
def test_tests_and_references_are_told_by_no_lesson(name: str) -> None:
    secrets = secrets_of(CLIPPED, seed=0, expected=["98765", "0"])

    assert leak(LEAKS[name], secrets) is not None


@pytest.mark.parametrize("name", FREE)
def test_what_could_be_of_any_problem_is_no_secret(name: str) -> None:
    secrets = secrets_of(CLIPPED, seed=0, expected=["98765", "0"])

    assert leak(FREE[name], secrets) is None
