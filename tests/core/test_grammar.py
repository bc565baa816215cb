"""A text that is held to a form has it, whatever the model would rather say."""

import json
import re
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from nanochat.errors import InputError
from nanochat.generation.engine import Choices
from nanochat.generation.options import Piece, read_options
from nanochat.generation.session import generate
from nanochat.generation.texts import new_texts
from nanochat.lm import Model
from nanochat.text.grammar import (
    Grammar,
    Vocabulary,
    json_grammar,
    lark_grammar,
    regex_grammar,
)
from nanochat.text.library import LibraryTokenizer, load_tokenizer
from nanochat.text.roles import Roles
from nanochat.text.thinking import KNOWN_MARKS, Thoughts
from nanochat.text.tokenizer import Tokenizer as OurTokenizer
from tests.core.foreign_tokenizers import llama_3, sentencepiece, write_llama_3
from tests.parity.random_models import random_bundle

FEW, MANY = 40, 1000


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights, which want nothing in particular."""
    return Model.from_bundle(random_bundle(seed=3, context_length=512), backend="reference")


@pytest.fixture(scope="module")
def vocabulary(model: Model) -> Vocabulary:
    return Vocabulary(model.tokenizer)


def written(model: Model, form: Grammar, **options: Any) -> tuple[str, Piece]:
    ids = model.encode_prompt("x")
    pieces = list(
        generate(
            model.engine, model.tokenizer, [ids], constraint=form, **{"max_tokens": 300, **options}
        )
    )
    return "".join(piece.text for piece in pieces), pieces[-1]


def random_schema(generator: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    kinds = ["integer", "string", "boolean", "null", "enum", "const", "pattern", "number"]
    if depth < 2:
        kinds += ["array", "object", "object", "anyOf"]
    match str(generator.choice(kinds)):
        case "integer":
            low = int(generator.integers(-50, 50))
            return {"type": "integer", "minimum": low, "maximum": low + int(generator.integers(90))}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": 9}
        case "string":
            return {"type": "string", "minLength": 1, "maxLength": int(generator.integers(1, 9))}
        case "pattern":
            return {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]$"}
        case "enum":
            return {"enum": ["é🦀", 'quo"te', 7, None, True][: generator.integers(1, 6)]}
        case "const":
            return {"const": {"a": [1, "x"]}}
        case "array":
            items = random_schema(generator, depth + 1)
            return {"type": "array", "items": items, "minItems": 1, "maxItems": 3}
        case "anyOf":
            return {"anyOf": [random_schema(generator, depth + 1) for _ in range(2)]}
        case "object":
            names = ["a", "ключ", "with space", "d"][: generator.integers(1, 5)]
            properties = {name: random_schema(generator, depth + 1) for name in names}
            required = [name for name in names if generator.random() < 0.7]
            return {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        case kind:
            return {"type": kind}


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is of a schema, of the kinds that are made here."""
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "anyOf" in schema:
        return any(conforms(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "number":
            return type(value) in (int, float) and schema["minimum"] <= value <= schema["maximum"]
        case "string" if "pattern" in schema:
            return isinstance(value, str) and bool(re.search(schema["pattern"], value))
        case "string":
            return isinstance(value, str) and 1 <= len(value) <= schema["maxLength"]
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return (
                isinstance(value, list)
                and 1 <= len(value) <= 3
                and all(conforms(item, schema["items"]) for item in value)
            )
        case _:
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= value.keys() <= schema["properties"].keys()
                and all(conforms(item, schema["properties"][name]) for name, item in value.items())
            )


def test_every_answer_that_ends_is_of_its_schema(
    model: Model, vocabulary: Vocabulary, pytestconfig: pytest.Config
) -> None:
    generator = np.random.default_rng(1)
    ended = 0
    count = MANY if pytestconfig.getoption("--long") else FEW
    for seed in range(count):
        inner = random_schema(generator)
        schema = {
            "type": "object",
            "properties": {"value": inner},
            "required": ["value"],
            "additionalProperties": False,
        }

        text, last = written(
            model, json_grammar(vocabulary, schema), temperature=1.0, seed=seed, max_tokens=120
        )

        if last.finish_reason == "stop":
            ended += 1
            value = json.loads(text)
            assert conforms(value["value"], inner), (schema, text)
            assert text == text.strip()
    assert ended > count // 2


def test_a_form_ends_by_itself_and_is_compact(model: Model, vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"type": "array", "maxItems": 0}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }

    text, last = written(model, json_grammar(vocabulary, schema))

    assert (text, last.finish_reason) == ('{"a":1,"b":[]}', "stop")


def test_any_object_is_json(model: Model, vocabulary: Vocabulary) -> None:
    text, last = written(model, json_grammar(vocabulary), temperature=1.0, max_tokens=60)

    assert text.startswith("{")
    assert last.finish_reason == "length" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_expression_and_a_grammar_are_kept_to(
    model: Model, vocabulary: Vocabulary, temperature: float
) -> None:
    expression = "(yes|no), [a-f]{3,5}\\."
    by_expression, _ = written(
        model, regex_grammar(vocabulary, expression), temperature=temperature
    )
    lark = 'start: "<" NAME ">" ("," NAME)*\nNAME: /[xyz]{2}/'
    by_grammar, last = written(
        model, lark_grammar(vocabulary, lark), temperature=temperature, max_tokens=40
    )

    assert re.fullmatch(expression, by_expression)
    assert last.finish_reason == "length" or re.fullmatch("<[xyz]{2}>(,[xyz]{2})*", by_grammar)


@pytest.mark.parametrize("library", [sentencepiece(), llama_3()])
def test_every_kind_of_tokenizer_is_kept_to_a_form(library: Tokenizer) -> None:
    codec = LibraryTokenizer(json.loads(library.to_str()), Roles(eos=2))
    bundle = random_bundle(tokenizer=codec, vocab_size=codec.vocab_size, context_length=512)
    model = Model.from_bundle(bundle, backend="reference")
    schema = {"type": "object", "properties": {"be": {"const": "to be<"}}, "required": ["be"]}

    text, last = written(
        model, json_grammar(Vocabulary(codec), {**schema, "additionalProperties": False})
    )

    assert (text.strip(), last.finish_reason) == ('{"be":"to be<"}', "stop")


def test_options_hold_within_a_form(model: Model, vocabulary: Vocabulary) -> None:
    form = regex_grammar(vocabulary, "[ab]{6}")
    letters = {letter: model.tokenizer.encode(letter)[0] for letter in "ab"}

    only, _ = written(model, form, logit_bias={letters["a"]: -100.0})
    stopped, last = written(model, form, stop=["b"], logit_bias={letters["b"]: 100.0})
    told, _ = written(model, form, logprobs=2, temperature=1.0)

    assert only == "bbbbbb"
    assert (stopped, last.finish_reason) == ("", "stop")
    assert re.fullmatch("[ab]{6}", told)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_that_is_complete_ends_a_text_however_short(
    model: Model, vocabulary: Vocabulary, temperature: float
) -> None:
    form = regex_grammar(vocabulary, "[ab]{3}(,[ab]{3})?")

    text, last = written(model, form, min_tokens=50, temperature=temperature)

    # What may go on does.
    assert re.fullmatch("[ab]{3},[ab]{3}", text)
    assert last.finish_reason == "stop"


@pytest.mark.parametrize(("expression", "is_of_it"), [("\\{[xy]\\}", True), ("[xy]", False)])
def test_what_follows_a_thought_in_its_last_token_is_of_the_form(
    expression: str, is_of_it: bool
) -> None:
    tokenizer = OurTokenizer.train(["</think>{"] * 50, vocab_size=269)
    *before, last = tokenizer.encode("</think>{")
    assert tokenizer.decode([last]) == ">{"
    wanted = read_options(
        {
            "constraint": regex_grammar(Vocabulary(tokenizer), expression),
            "thoughts": Thoughts(marks=KNOWN_MARKS[0], begun="<think>", budget=None),
        }
    )
    (text,) = new_texts([[5]], wanted, tokenizer, first=0, max_tokens=30)

    def pushed(token: int) -> Piece:
        nothing = np.zeros(1)
        choices = Choices(
            tokens=np.array([token]), logprobs=nothing, normalizers=nothing, logits=None
        )
        return text.push(choices, 0)[-1]

    for token in before:
        pushed(token)
    piece = pushed(last)

    if not is_of_it:
        assert "in the token that ends a thought" in str(piece.error)
        return
    rest = [pushed(token) for token in tokenizer.encode("x}")]
    assert [one.text for one in (piece, *rest)] == ["{", "x", "}"]
    assert text.sampler.error is None


def test_texts_side_by_side_keep_to_forms_of_their_own(
    model: Model, vocabulary: Vocabulary
) -> None:
    session = model.session(rows=4)
    forms = [regex_grammar(vocabulary, f"{letter}{{4}}") for letter in "abc"]
    rows = [
        *(session.add([7], max_tokens=9, constraint=form)[0] for form in forms),
        session.add([7], max_tokens=4)[0],
    ]
    texts = dict.fromkeys(rows, "")
    while not session.is_idle:
        for piece in session.step():
            texts[piece.row] += piece.text

    assert [texts[row] for row in rows[:3]] == ["aaaa", "bbbb", "cccc"]
    assert texts[rows[3]] == model.generate([[7]], max_tokens=4)[0]


def test_a_thought_is_bound_by_no_form(model: Model, vocabulary: Vocabulary) -> None:
    thoughts = Thoughts(marks=KNOWN_MARKS[0], begun="", budget=6)

    ids = model.encode_prompt("x")
    pieces = list(
        generate(
            model.engine,
            model.tokenizer,
            [ids],
            constraint=regex_grammar(vocabulary, "[ab]{5}"),
            thoughts=thoughts,
            max_tokens=200,
            temperature=1.0,
            # Random weights would end the text in the thought.
            ignore_eos=True,
        )
    )

    assert len("".join(piece.reasoning for piece in pieces)) > 3
    assert re.fullmatch("[ab]{5}", "".join(piece.text for piece in pieces).strip())


def test_other_people_s_tokenizers_have_a_vocabulary_too(tmp_path: Any) -> None:
    codec = load_tokenizer(write_llama_3(tmp_path))
    matcher = json_grammar(Vocabulary(codec), {"const": "é"}).matcher()
    allowed = np.zeros(-(-codec.vocab_size // 32), np.uint32)

    for token in codec.encode('"é"'):
        matcher.fill(allowed)
        assert allowed[token >> 5] >> (token & 31) & 1
        matcher.push(token)
    matcher.fill(allowed)

    found = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
    assert set(found.tolist()) == set(codec.stop_ids)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "hiccup"}, "Invalid type: hiccup"),
        ({"type": 123}, "type must be a string"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"not": {}}, "Unimplemented keys"),
        ({"enum": ["x" * 200_000]}, "pass 100000 or less"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(
    vocabulary: Vocabulary, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        json_grammar(vocabulary, schema)


@pytest.mark.parametrize("expression", ["(", "(?=x)", "[z-a]"])
def test_an_expression_that_cannot_be_is_refused(vocabulary: Vocabulary, expression: str) -> None:
    with pytest.raises(InputError, match="the regular expression cannot be used"):
        regex_grammar(vocabulary, expression)


def test_a_grammar_that_cannot_be_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="the grammar cannot be used"):
        lark_grammar(vocabulary, "start: NOTHING")
