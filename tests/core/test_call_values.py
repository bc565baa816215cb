"""Arguments that were written as texts become JSON of their schemas."""

import pytest

from nanochat.errors import InputError
from nanochat.text.call_values import Schemas, as_json

# Each is twice in the one before it, so that the last is there 2^31 times.
_DOUBLED = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(31)}
DOUBLED = Schemas({"$defs": {**_DOUBLED, "a31": {"type": "string", "maxLength": 3}}})
ENDLESS = Schemas({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}})


def test_a_schema_that_others_refer_to_often_is_looked_at_once() -> None:
    assert DOUBLED.types({"$ref": "#/$defs/a0"}) == {"string"}
    assert DOUBLED.expressions({"$ref": "#/$defs/a0"}) == ["/(?s:.{0,3})/"]


def test_a_choice_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="without an end"):
        ENDLESS.types({"$ref": "#/$defs/a"})
    with pytest.raises(InputError, match="without an end"):
        ENDLESS.expressions({"$ref": "#/$defs/a"})


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_number_for_is_a_text(text: str) -> None:
    assert as_json(text, frozenset(["number", "string"])) == f'"{text}"'
