"""`nanochat chat` shows thoughts apart, keeps them apart in the conversation, and ends them as asked."""

import io
from pathlib import Path

import pytest

from nanochat.cli.output import show_thought
from nanochat.export.directory import save_model
from tests.core.command_line import GREEDY, Run
from tests.core.thinking_models import ASKED, OPENED, PLAIN, SWITCHED, THOUGHT, thinker


@pytest.fixture(scope="session")
def thoughtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "thoughtful"
    save_model(path, thinker(SWITCHED))
    return path


def test_a_thought_goes_to_standard_error_and_the_answer_to_standard_output(
    run: Run, thoughtful: Path
) -> None:
    result = run("chat", thoughtful, "Hi", *GREEDY)

    assert (result.code, result.out) == (0, "xyz\n")
    assert f"(thinking)\n{THOUGHT}\n(answering)\n" in result.err


def test_json_has_the_thought_in_a_field_of_its_own(run: Run, thoughtful: Path) -> None:
    result = run("chat", thoughtful, "Hi", *GREEDY, "--json")

    assert {"text": "xyz", "reasoning": THOUGHT}.items() <= result.last_json.items()
    assert THOUGHT not in result.err


def test_a_model_may_be_told_to_think_or_not_to(run: Run, thoughtful: Path) -> None:
    def found(*options: object) -> object:
        return run("chat", thoughtful, "Hi", *options, *GREEDY, "--json").last_json["reasoning"]

    assert (found("--think"), found("--no-think")) == (THOUGHT, "")
    assert found("--thinking-budget", 0) == ""
    assert str(found("--thinking-budget", 3)).startswith("abc\n\nConsidering the limited time")


def test_a_thought_that_takes_all_tokens_says_what_to_do(run: Run, thoughtful: Path) -> None:
    result = run("chat", thoughtful, "Hi", "--max-tokens", 4, *GREEDY)

    assert (result.code, result.out) == (0, "\n")
    assert "(thinking)\nabc\n(no answer, for thoughts took all tokens: pass a larger" in result.err


@pytest.mark.parametrize(
    ("template", "option", "message"),
    [
        (PLAIN, "--think", "(--think), but this model's chat template knows no thinking"),
        (PLAIN, "--thinking-budget=5", "(--thinking-budget), but this model's chat template knows"),
        (OPENED, "--no-think", "pass thinking_budget=0 (--thinking-budget 0)"),
    ],
    ids=["think", "budget", "no-think"],
)
def test_what_the_template_cannot_do_is_refused_before_the_first_question(
    run: Run, thoughtful: Path, tmp_path: Path, template: str, option: str, message: str
) -> None:
    (tmp_path / "own.jinja").write_text(template)
    command = ("chat", thoughtful, "--template", tmp_path / "own.jinja", option, *GREEDY)

    for result in (run(*command), run(*command, "--message", "Hi")):
        assert (result.code, result.out) == (2, "")
        assert message in result.err


def test_the_next_turn_has_the_answer_and_the_thought_apart(
    run: Run, thoughtful: Path, tmp_path: Path
) -> None:
    check = (
        "{% for m in messages if m.role == 'assistant' %}{% if m.reasoning_content != '"
        + THOUGHT
        + "' or m.content != 'xyz' %}{{ raise_exception('they are mixed') }}{% endif %}{% endfor %}"
    )
    (tmp_path / "own.jinja").write_text(check + ASKED)

    result = run(
        *("chat", thoughtful, "--template", tmp_path / "own.jinja", *GREEDY),
        stdin=b"Hi\nHi again\n",
    )

    assert (result.code, result.out) == (0, "xyz\nxyz\n")
    assert result.err.count("(thinking)") == 2
    assert "they are mixed" not in result.err


def test_on_a_terminal_a_thought_is_dimmed_and_has_no_power(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    show_thought("Hm\x1b[31m")

    assert terminal.getvalue() == "\x1b[2mHm\N{REPLACEMENT CHARACTER}[31m\x1b[0m"
