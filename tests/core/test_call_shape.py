"""How a chat template writes calls is found from what it writes."""

import json

import pytest

from nanochat.errors import InputError
from nanochat.text.call_probe import call_shape
from nanochat.text.call_shape import ID, SPECIAL, CallShape, ParameterShape
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import CHAT_TEMPLATE, llama_3
from tests.core.real_templates import real_templates
from tests.core.test_chat_template import tokenizer
from tests.core.tool_models import BARE, LISTED, codec
from tests.core.tool_models import HERMES as TOOL_CALL

HERMES = CallShape(
    mark="<tool_call>",
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    close="}\n</tool_call>",
    between='\n<tool_call>\n{"name": "',
    end="",
)
QWEN_3_5 = CallShape(
    mark="<tool_call>",
    opening="<tool_call>\n<function=",
    middle="",
    close="\n</parameter>\n</function>\n</tool_call>",
    between="\n<tool_call>\n<function=",
    end="",
    parameters=ParameterShape(
        first=">\n<parameter=",
        value=">\n",
        next="\n</parameter>\n<parameter=",
        empty=">\n</function>\n</tool_call>",
    ),
)
LLAMA_3 = CallShape(
    mark="",
    opening='{"name": "',
    middle='", "parameters": ',
    close="}",
    between=None,
    end="",
)
MISTRAL = CallShape(
    mark="[TOOL_CALLS]",
    opening='[TOOL_CALLS][{"name": "',
    middle='", "arguments": ',
    close=f', "id": "{ID * 9}"}}',
    between=', {"name": "',
    end="]",
    short_ids=True,
)
GLM_4 = CallShape(
    mark="<tool_call>",
    opening="<tool_call>",
    middle="",
    close="</arg_value>\n</tool_call>",
    between="\n<tool_call>",
    end="",
    parameters=ParameterShape(
        first="\n<arg_key>",
        value="</arg_key>\n<arg_value>",
        next="</arg_value>\n<arg_key>",
        empty="\n</tool_call>",
    ),
)
REAL = {
    "trl/qwen2_5": HERMES,
    "trl/qwen3": HERMES,
    "trl/qwen3_instruct_2507": HERMES,
    "trl/qwen3_5_think": QWEN_3_5,
    "trl/qwen3_5_nothink": QWEN_3_5,
    "trl/qwen3_6": QWEN_3_5,
    "trl/llama3_1": LLAMA_3,
    "axolotl/mistral_v3_tekken": MISTRAL,
    "trl/glm4moe": GLM_4,
}


@pytest.mark.parametrize("name", REAL)
def test_shapes_of_real_templates(name: str) -> None:
    template = real_templates()[name]

    assert call_shape(template, tokenizer(template)) == REAL[name]


def test_most_real_templates_with_tools_are_understood() -> None:
    found = {}
    for name, template in real_templates().items():
        try:
            found[name] = call_shape(template, tokenizer(template))
        except InputError:
            continue

    understood = {name for name in real_templates() if "qwen" in name} - {"axolotl/qwen2_vl"}
    assert {
        *REAL,
        "axolotl/exaone4",
        "axolotl/mistral_v2v3",
        "axolotl/jamba",
        "trl/nemotron_3_nano",
    } <= {*found}
    assert {name for name in understood if "2_5_vl" not in name} <= {*found}
    assert len(found) > 35


def test_special_tokens_are_told_from_texts_that_look_like_them() -> None:
    shape = call_shape(LISTED, codec(LISTED))

    assert shape.mark == f"{SPECIAL}[TOOL_CALLS]"
    assert shape.opening == f'{SPECIAL}[TOOL_CALLS][{{"name": "'


def test_a_call_s_number_may_stand_before_its_name() -> None:
    template = TOOL_CALL.replace('{"name"', '{"id": "{{ c.id }}", "name"')

    shape = call_shape(template, codec(template))

    assert shape.opening == f'<tool_call>\n{{"id": "{ID * 15}", "name": "'
    assert shape.between == f"\n{shape.opening}"


def test_what_ends_a_turn_is_no_part_of_a_call() -> None:
    other = BARE.replace(
        "<|eot_id|>{% endfor", "{{ '<|end_of_text|>' if m.tool_calls else '<|eot_id|>' }}{% endfor"
    )
    ends = [codec(BARE).specials[name] for name in ("<|eot_id|>", "<|end_of_text|>")]
    roles = Roles(eos=ends[0], stops=frozenset(ends), chat_template=other)

    shapes = [
        call_shape(BARE, codec(BARE)),
        call_shape(other, LibraryTokenizer(json.loads(llama_3().to_str()), roles)),
    ]

    assert [shape.close + shape.end for shape in shapes] == ["}", "}"]


def test_the_end_of_an_argument_cannot_begin_within_itself() -> None:
    assert QWEN_3_5.value_end == "\n</parameter>"
    assert GLM_4.value_end == "</arg_value>\n"


NUMBERED = BARE.replace('{"name"', '{"id": "{{ m.tool_calls[0].id }}", "name"')
# The number of the second call is the first that tells it from the end.
TOUCHING = (
    LISTED.replace('{"name"', '{{ c.id }}{"name"')
    .replace(', "id": "{{ c.id }}"', "")
    .replace('{{ ", " if not loop.last }}', "")
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT_TEMPLATE, "its chat template knows none"),
        (real_templates()["trl/gptoss"], "not written once for each call"),
        (real_templates()["trl/gemma4"], "neither JSON nor one after the other"),
        (real_templates()["trl/lfm2_v2"], "depends on them"),
        (real_templates()["axolotl/llama4"], "calls behind a text are written otherwise"),
        ("{{ tools }}{{ messages[0].content }}", "not written once"),
        (
            "{{ tools }}{% if messages[1] %}{{ raise_exception('no') }}{% endif %}",
            "writes no calls",
        ),
        ("{# </think> #}" + BARE, "it thinks, and calls have no mark"),
        (NUMBERED, "numbers stand before names, and calls have no mark"),
        (TOUCHING, "nothing tells another call from the end"),
    ],
    ids=[
        "none",
        "harmony",
        "gemma",
        "python",
        "llama 4",
        "silent",
        "refuses",
        "thinks",
        "numbered",
        "touching",
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call_shape(template, codec(template))
