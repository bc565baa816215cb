"""Arguments that were written as texts become JSON of their schemas."""

import pytest

from nanochat.text.call_values import as_json


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_number_for_is_a_text(text: str) -> None:
    assert as_json(text, frozenset(["number", "string"])) == f'"{text}"'
