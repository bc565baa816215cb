"""Learning from attempts: whose lessons count, what an interruption changes, and what is never learnt from."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.evaluation.completing import Drawing, complete
from nanochat.experience.attempts import trainable
from nanochat.experience.learning import Learning, learn, learn_references
from nanochat.experience.library import Library, read_library
from nanochat.experience.writer import Writer
from nanochat.judge.judge import Judge
from nanochat.problems.sets import ProblemSet, load
from nanochat.text.messages import Message
from tests.experience.learners import Script, coin, kind_of, problems_file, sensible

DRAWING = Drawing(num_samples=8, temperature=1, top_p=1, max_tokens=8)
LEARNING = Learning(drawing=DRAWING, batch_size=2, epochs=2, budget=400, most_lessons=1)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as one:
        yield one


@pytest.fixture
def problems(tmp_path: Path) -> ProblemSet:
    return trainable(str(problems_file(tmp_path)))


def learnt(
    problems: ProblemSet,
    judge: Judge,
    path: Path,
    writer: Writer | None,
    learning: Learning = LEARNING,
) -> Library:
    return learn(coin(), problems, learning, judge, path, writer=writer, progress=lambda *_: None)


def numbers(library: Library, name: str) -> list[Any]:
    return [batch[name] for batch in library.batches]


def test_lessons_come_of_problems_that_are_right_and_wrong(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    script = sensible()

    library = learnt(problems, judge, tmp_path / "a.json", script)

    # Each epoch has two batches; a pair is never right.
    assert numbers(library, "epoch") == [1, 1, 2, 2]
    assert sum(numbers(library, "mixed")) == sum(numbers(library, "new_lessons")) == 6
    assert script.kinds().count("lessons") == 6
    assert script.kinds().count("operations") == 4
    named = {lesson.text.split()[2] for lesson in library.lessons}
    assert "pair" not in named
    assert named <= {"nil", "single", "naught"}
    assert [lesson.id for lesson in library.lessons] == [
        f"L{n}" for n in range(1, len(library.lessons) + 1)
    ]
    assert read_library(tmp_path / "a.json") == library


def test_attempts_are_made_with_what_was_learnt_before(
    problems: ProblemSet, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanochat.experience import attempts

    before: list[set[str]] = []

    def watched(engine: Any, tokenizer: Any, requests: Any, drawing: Drawing) -> Any:
        before.append({request.before for request in requests})
        return complete(engine, tokenizer, requests, drawing)

    monkeypatch.setattr(attempts, "complete", watched)

    learnt(problems, judge, tmp_path / "a.json", sensible())

    assert before[0] == {""}
    assert all("// - Read what" in text for texts in before[1:] for text in texts)


def test_a_run_that_is_interrupted_ends_as_one_that_is_not(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    learnt(problems, judge, tmp_path / "whole.json", sensible())
    path = tmp_path / "cut.json"
    for stop in (3, 9, 14):
        writer = _Interrupted(stop)
        with pytest.raises(KeyboardInterrupt):
            learnt(problems, judge, path, writer)
    num_before = len(read_library(path).batches)

    learnt(problems, judge, path, sensible())

    assert 0 < num_before < 4
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()


class _Interrupted(Script):
    """The sensible writer, until somebody presses Ctrl-C."""

    def __init__(self, num_answers: int) -> None:
        super().__init__()
        self._left = num_answers
        self._writer = sensible()

    def write(self, messages: Sequence[Message]) -> str:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return self._writer.write(messages)


BAD = {
    "prose": "I would say: read more.",
    "an unknown id": '{"operations": [{"operation": "DELETE", "id": "L99"}]}',
    "a leak": '{"operations": [{"operation": "ADD", "text": "naught() is a call."}]}',
}


@pytest.mark.parametrize("name", BAD)
def test_without_a_retry_left_the_old_library_stays(
    problems: ProblemSet, judge: Judge, tmp_path: Path, name: str
) -> None:
    good = sensible()
    learnt(problems, judge, tmp_path / "good.json", good, _first_batch())
    script = Script(lessons=good.write, operations=BAD[name])

    library = learnt(problems, judge, tmp_path / "bad.json", script, _first_batch())

    assert library.lessons == ()
    assert numbers(library, "failed") == [1]
    assert numbers(library, "refused") == [4]
    assert script.kinds().count("operations") == 4
    retry = script.asked[-1]
    assert [message["role"] for message in retry] == ["user", "assistant", "user"]
    assert retry[1]["content"] == BAD[name]
    assert "That cannot be used: " in str(retry[2]["content"])


def _first_batch() -> Learning:
    return Learning(drawing=DRAWING, batch_size=4, budget=400, most_lessons=1)


def test_a_writer_that_learns_from_a_refusal_is_heard(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    good = sensible()

    def operations(messages: Sequence[Message]) -> str:
        return good.write(messages) if len(messages) > 1 else "Let me think."

    script = Script(lessons=good.write, operations=operations)

    library = learnt(problems, judge, tmp_path / "a.json", script, _first_batch())

    assert len(library.lessons) == 3
    assert (numbers(library, "failed"), numbers(library, "refused")) == ([0], [1])


def test_a_problem_whose_lessons_are_refused_teaches_nothing(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    script = Script(lessons='{"lessons": ["Write nil() as a call."]}', operations="never")

    library = learnt(problems, judge, tmp_path / "a.json", script, _first_batch())

    assert library.lessons == ()
    assert numbers(library, "failed") == [3]
    assert "operations" not in script.kinds()


def test_results_of_tests_are_not_shown_to_a_writer(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    script = sensible()

    learnt(problems, judge, tmp_path / "a.json", script, _first_batch())

    said = "\n".join(str(message["content"]) for asked in script.asked for message in asked)
    assert "it returns something wrong for some arguments" in said
    assert "result 1 of" not in said


def test_lessons_stay_within_the_budget(problems: ProblemSet, judge: Judge, tmp_path: Path) -> None:
    learning = Learning(drawing=DRAWING, batch_size=4, budget=120, most_lessons=1)

    library = learnt(problems, judge, tmp_path / "a.json", sensible(), learning)

    (batch,) = library.batches
    assert batch["left_out"] == 3 - len(library.lessons) > 0
    assert 0 < batch["tokens"] <= 120  # type: ignore[operator]


def test_examples_are_attempts_that_passed_and_one_for_a_problem(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    library = learnt(problems, judge, tmp_path / "a.json", None)

    assert {one.problem: one.body for one in library.examples} == {
        "few/nil": " 0}",
        "few/single": " 1}",
        "few/naught": " 0}",
    }
    assert sum(numbers(library, "examples")) == 3
    # In the second epoch, only what has no example is tried.
    assert sum(numbers(library, "attempts")) == 5 * 8
    assert library.learnt_from["source"] == "attempts"


def test_another_setting_does_not_go_on_with_a_library(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    learnt(problems, judge, path, None)
    other = Learning(drawing=DRAWING, batch_size=3)

    with pytest.raises(InputError, match=r"was learnt with .*: pass another --out, or --overwrite"):
        learnt(problems, judge, path, None, other)
    with pytest.raises(InputError, match="was learnt with "):
        learnt(problems, judge, path, sensible())


def test_more_epochs_go_on_with_a_library(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    short = Learning(drawing=DRAWING, batch_size=2, epochs=1, budget=400, most_lessons=1)
    learnt(problems, judge, path, sensible(), short)

    longer = learnt(problems, judge, path, sensible())

    assert longer == learnt(problems, judge, tmp_path / "b.json", sensible())


def test_lessons_need_two_attempts(problems: ProblemSet, judge: Judge, tmp_path: Path) -> None:
    one = Learning(drawing=Drawing(num_samples=1))

    with pytest.raises(InputError, match="lessons need both: take --samples 2 or more"):
        learnt(problems, judge, tmp_path / "a.json", sensible(), one)


def test_references_are_examples_that_say_so(problems: ProblemSet, tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    library = learn_references(problems, path, budget=9)

    assert len(library.examples) == 4
    assert library.learnt_from["source"] == "references"
    assert json.loads(path.read_text())["learnt_from"]["problems_sha256"] == problems.identity
    assert learn_references(problems, path, budget=9) == library


@pytest.mark.parametrize("split", ["held-out", "other-types", "other-names"])
def test_what_is_measured_with_is_not_learnt_from(judge: Judge, tmp_path: Path, split: Any) -> None:
    measured = load("templates").select(splits=(split,))
    few = ProblemSet("mine", measured.problems[:2])

    with pytest.raises(InputError, match="learnt from other problems than it is measured with"):
        learnt(few, judge, tmp_path / "a.json", None)
    with pytest.raises(InputError, match="learnt from other problems than it is measured with"):
        learn_references(few, tmp_path / "a.json", budget=9)

    assert not (tmp_path / "a.json").exists()


def test_the_scripts_are_asked_for_three_things() -> None:
    assert kind_of([{"role": "user", "content": 'as in\n\n{"lessons": ["..."]}'}]) == "lessons"
    assert kind_of([{"role": "user", "content": "why?"}]) == "summary"
