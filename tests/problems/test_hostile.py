"""Whatever a file of problems holds, it is read, or refused with a reason."""

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import FormatError, InputError
from nanochat.problems import multipl_e, tests_module
from nanochat.problems.assertions import split_assertions
from nanochat.problems.mutants import mutants
from nanochat.problems.own import read_problems
from nanochat.problems.rows import Row, read_rows
from nanochat.problems.strategy import parse_strategy
from nanochat.problems.templates import read_templates
from nanochat.problems.types import absolute_expression, parse_type
from nanochat.problems.values import read_value

WORDS = """
fn f use // /// # [ ] ( ) { } < > , ; : :: -> & 'a ' " -9 0 1.5 T u8 &str Vec Option String inputs: edges: types:
arguments: names: n in of one made length with sorted ..= | = == ! assert_eq assert test mod cfg None Some true
\\ \\u{ é let candidate main level: half root
"""
SOURCES = st.lists(st.sampled_from([*WORDS.split(), "\n"])).map(" ".join) | st.text()
JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def row(text: str) -> Row:
    names = ("task_id", "name", "prompt", "test", "tests", "canonical_solution", "declaration")
    return Row(fields={"language": "rs", **dict.fromkeys(names, text)}, place="x:1")


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(parse_type, id="type"),
        pytest.param(parse_strategy, id="strategy"),
        pytest.param(absolute_expression, id="expression"),
        pytest.param(lambda text: list(mutants(text)), id="mutants"),
        pytest.param(lambda text: list(read_problems(text, "x.rs")), id="functions"),
        pytest.param(lambda text: list(read_templates(text, "x.rs")), id="templates"),
        pytest.param(lambda text: list(read_rows(text, "x.jsonl")), id="rows"),
        pytest.param(
            lambda text: read_value(text, parse_type("Vec<(char, Option<&str>)>")), id="value"
        ),
        pytest.param(
            lambda text: split_assertions(text, "f", entry="f", returns="u8"), id="assertions"
        ),
        pytest.param(lambda text: tests_module.problem_of(row(text)), id="module"),
        pytest.param(lambda text: multipl_e.problem_of(row(text)), id="multipl_e"),
    ],
)
@given(source=SOURCES)
def test_any_text_is_read_or_refused(read: Callable[[str], object], source: str) -> None:
    with contextlib.suppress(FormatError, InputError):
        read(source)


@given(JSON)
def test_any_json_is_a_row_or_refused(value: object) -> None:
    with contextlib.suppress(FormatError):
        assert [row.place for row in read_rows(json.dumps(value), "x.jsonl")] == ["x.jsonl:1"]
