"""The library: its file is exact and says what is wrong with it, and what does not fit leaves in order."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import FormatError, InputError, VersionError
from nanochat.experience.library import Example, Lesson, Library, kept, lines_of, read_library

LIBRARY = Library(
    learnt_from={"problems": "templates", "problems_sha256": "ab", "model": {"name": "tiny"}},
    budget=100,
    lessons=(
        Lesson(id="L1", text='Compare "as asked", é.', uses=3, batch=2),
        Lesson(id="L2", text="Return the last expression.", uses=1, batch=4),
    ),
    examples=(Example(problem="t/one", family="one", prompt="fn one() -> u8 {", body=" 1 }"),),
    batches=({"epoch": 1, "passed": 3},),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "library.json"
    LIBRARY.save(path)
    return path


def test_a_library_is_read_as_it_was_written(path: Path) -> None:
    found = read_library(path)
    before = path.read_bytes()
    found.save(path)

    assert found == LIBRARY
    assert path.read_bytes() == before


def test_the_identity_is_that_of_what_a_model_reads() -> None:
    same = replace(LIBRARY, batches=(), learnt_from={})
    used = replace(LIBRARY, lessons=tuple(replace(x, uses=9) for x in LIBRARY.lessons))
    others = [
        replace(LIBRARY, lessons=LIBRARY.lessons[:1]),
        replace(LIBRARY, examples=()),
        replace(LIBRARY, budget=99),
    ]

    assert same.identity == used.identity == LIBRARY.identity
    assert len({LIBRARY.identity, *(other.identity for other in others)}) == 4


def _cut(content: dict[str, Any]) -> object:
    content.pop("budget")
    return content


def _with(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content | changes


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a list": (lambda _: [], "is not of the format"),
    "another file": (_with(format="nanochat-records"), "is not of the format"),
    "no budget": (_cut, "has no field 'budget'"),
    "more": (_with(color=1), "has an unknown field 'color'"),
    "a negative budget": (_with(budget=-1), "budget is -1, and no count"),
    "a budget that is true": (_with(budget=True), "budget is True, and no count"),
    "lessons in words": (_with(lessons="L1"), "lessons is 'L1', and no list"),
    "a lesson in words": (_with(lessons=["L1"]), "number 1 of lessons is 'L1', and no JSON object"),
    "a lesson without text": (
        _with(lessons=[{"id": "L1", "uses": 1, "batch": 1}]),
        "number 1 of lessons has no field 'text'",
    ),
    "a lesson that is there twice": (
        _with(lessons=[{"id": "L1", "text": "a", "uses": 1, "batch": 1}] * 2),
        "two lessons have the same id",
    ),
    "an example without body": (
        _with(examples=[{"problem": "a", "family": "a", "prompt": "fn a() {", "body": None}]),
        "number 1 of examples: body is None, and no text",
    ),
    "a batch in words": (_with(batches=["one"]), "number 1 of batches is 'one'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_says_what_is_wrong(path: Path, name: str) -> None:
    change, said = DAMAGED[name]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

    with pytest.raises(FormatError, match="learn again, or pass a file") as error:
        read_library(path)

    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_cut_off_is_no_library(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(FormatError, match="is no JSON"):
        read_library(path)


def test_a_file_of_the_future_asks_for_an_update(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))

    with pytest.raises(VersionError, match="version 2 of its format, and this package knows 1"):
        read_library(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*none.json"):
        read_library(tmp_path / "none.json")


def test_the_least_used_leave_first_and_of_equals_the_oldest() -> None:
    lessons = [
        Lesson(id="L1", text="often", uses=3, batch=1),
        Lesson(id="L2", text="lately", uses=1, batch=5),
        Lesson(id="L3", text="long ago", uses=1, batch=2),
        Lesson(id="L4", text="long ago, too", uses=1, batch=2),
    ]
    whole = len(lines_of(lessons))

    left: list[list[str]] = []
    for budget in range(whole, -1, -1):
        names = [lesson.id for lesson in kept(lessons, budget=budget, count=len)]
        if not left or left[-1] != names:
            left.append(names)

    assert left == [["L1", "L2", "L3", "L4"], ["L1", "L2", "L4"], ["L1", "L2"], ["L1"], []]


def test_what_is_kept_is_within_the_budget() -> None:
    lessons = [Lesson(id=f"L{n}", text="word " * n) for n in range(1, 9)]

    for budget in range(0, 400, 7):
        assert len(lines_of(kept(lessons, budget=budget, count=len))) <= budget


def test_a_lesson_is_one_comment_whatever_it_holds() -> None:
    text = lines_of([Lesson(id="L1", text="first\nfn main() {}\r\u2028last")])

    assert all(line.startswith("//") for line in text.splitlines() if line)
    assert "// - first fn main() {} last\n" in text
