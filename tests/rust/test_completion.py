"""Where completions end, whole and in pieces, against a lexer that is slow and plain."""

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import InputError
from nanochat.rust.completion import FunctionEnd, end_of_function
from tests.rust.pieces import texts
from tests.rust.slow_lexer import slow_tokens

HARD = Path(__file__).with_name("hard.rs").read_text(encoding="utf-8")


def slow_end(prompt: str, completion: str) -> int | None:
    """Return what `end_of_function` does, for a prompt that ends in the function's brace."""
    depth = 1
    for token in slow_tokens(prompt + completion):
        if token.start >= len(prompt) and token.text in ("{", "}"):
            depth += 1 if token.text == "{" else -1
            if not depth:
                return token.start + 1 - len(prompt)
    return None


def ends(prompt: str, pieces: list[str]) -> list[int | None]:
    """Return what is known after each piece."""
    watch = FunctionEnd(prompt)
    return [watch.feed(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("prompt", "completion", "text"),
    [
        pytest.param("fn f() {", "\n    1\n}\n\nfn g() {}", "\n    1\n}", id="on a line of its own"),
        pytest.param("fn f() {", " a + b }\n\n", " a + b }", id="on the prompt's line"),
        pytest.param("    fn f() {", "\n        1\n    }\n}", "\n        1\n    }", id="indented"),
        pytest.param("fn f() {", "}}", "}", id="an empty body"),
        pytest.param("fn f() {", " if a { b } else { c } }", " if a { b } else { c } }", id="blocks"),
        pytest.param("fn f() {", ' r"\n}" }', ' r"\n}" }', id="in a raw string"),
        pytest.param("fn f() {", ' r#""}"# }', ' r#""}"# }', id="in a raw string with hashes"),
        pytest.param("fn f() {", "/* \n} /* } */ } */ }", "/* \n} /* } */ } */ }", id="in a comment in a comment"),
        pytest.param("fn f() {", " // }\n}", " // }\n}", id="in a line's comment"),
        pytest.param("fn f() {", " '}' }", " '}' }", id="as a character"),
        pytest.param("fn f<'a>() {", " g::<'a>() }", " g::<'a>() }", id="a lifetime"),
        pytest.param("fn f() {", " '\\'' }", " '\\'' }", id="an escaped quote"),
        pytest.param("fn f() {", ' "\\"}" }', ' "\\"}" }', id="in a string"),
        pytest.param("fn f() {", ' println!("{}", x); }', ' println!("{}", x); }', id="in a format"),
        pytest.param("fn f() {", " (] }", " (] }", id="other brackets do not count"),
        pytest.param("impl A {\n  fn f() { 1 }\n  fn g() {", " 2 } }", " 2 }", id="a method"),
        pytest.param("fn f() { // }", " }\n}", " }\n}", id="a prompt that ends in a comment"),
        pytest.param("fn f() { /", "/ }\n}", "/ }\n}", id="a prompt that ends in half of a mark"),
        pytest.param("fn f() { b", "'}' }", "'}' }", id="a prompt that ends in half of a word"),
        pytest.param("#!/bin/x {\nfn f() {", " }", " }", id="an interpreter"),
        pytest.param("#![a]\n} fn f() {", " }", " }", id="a brace too many"),
    ],
)  # fmt: skip
def test_a_completion_ends_behind_the_brace_of_its_function(
    prompt: str, completion: str, text: str
) -> None:
    assert end_of_function(prompt, completion) == len(text)


@pytest.mark.parametrize(
    "completion",
    ["", " ", " 1", " { }", ' "}', " /* }", " // }", " '}", ' r#"}"', " /* /* */ }", " b'}", ")"],
)
def test_what_closes_nothing_does_not_end(completion: str) -> None:
    assert end_of_function("fn f() {", completion) is None


@pytest.mark.parametrize("prompt", ["", "fn f()", "fn f() { }", "// {", "'{", "#!/bin/x {"])
def test_a_prompt_without_an_open_body_is_an_error_that_says_so(prompt: str) -> None:
    with pytest.raises(InputError, match="has no open brace: pass source that ends in a body"):
        FunctionEnd(prompt)


@settings(max_examples=2000)
@given(texts(4), texts())
def test_any_completion_ends_where_a_plain_lexer_says(body: str, completion: str) -> None:
    # What is left open is open still, and may be within a token.
    prompt = "fn f() {" + body.replace("}", "{")

    assert end_of_function(prompt, completion) == slow_end(prompt, completion)


@settings(max_examples=2000)
@given(texts(), st.lists(st.integers(0, 40)))
def test_pieces_end_as_soon_as_the_whole_does(completion: str, cuts: list[int]) -> None:
    places = sorted({0, len(completion), *(cut for cut in cuts if cut < len(completion))})
    pieces = [completion[a:b] for a, b in itertools.pairwise(places)]

    known = ends("fn f() {", pieces)

    whole = end_of_function("fn f() {", completion)
    assert known == [
        whole if whole is not None and whole <= place else None for place in places[1:]
    ]


def test_characters_one_by_one_end_as_the_whole_does() -> None:
    body = HARD.partition("\n")[2] + "}"

    known = ends("fn f() {", [*body])

    assert known.index(len(body)) == len(body) - 1


def test_nothing_that_follows_the_end_moves_it() -> None:
    assert ends("fn f() {", ["1 }", "}", "{"]) == [3, 3, 3]


@pytest.mark.parametrize("piece", ["a", " ", '"', "'", "\\", "#", "/*", '"#'])
@pytest.mark.parametrize("begun", ["", '"', 'r#"', "r#", 'r##"', "/*", "//", "'", "'\\"])
def test_the_time_grows_no_faster_than_the_text(begun: str, piece: str) -> None:
    watch = FunctionEnd("fn f() {" + begun)
    seconds = []

    for number in (1_000, 20_000):
        start = time.process_time()
        for _ in range(number):
            watch.feed(piece)
        seconds.append(time.process_time() - start)

    # Twenty times as much; were the time that of the square, four hundred.
    assert seconds[1] < 100 * seconds[0] + 0.1
