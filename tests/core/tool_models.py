"""This file holds chat templates that write calls of tools as known ones do, and their tokenizer."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer

from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3

__all__ = ["BARE", "HERMES", "LISTED", "MARKED", "NONE", "THINKING", "codec"]


def _template(calls: str, *, begins: str = "") -> str:
    return (
        "{% if tools %}<|start_header_id|>system<|end_header_id|>{{ tools | tojson }}<|eot_id|>{% endif %}"
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}"
        + calls
        + "<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>"
        + begins
        + "{% endif %}"
    )


# Qwen 3 and many others.
_HERMES = (
    '{% for c in m.tool_calls or [] %}{{ "\\n" }}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
)
HERMES = _template(_HERMES)
# The same, of a model that thinks, and whose template begins the thought.
THINKING = _template(
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}" + _HERMES,
    begins="<think>\n",
)
# Qwen 3.5.
MARKED = _template(
    "{% for c in m.tool_calls or [] %}{{ '\\n' }}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n"
    "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
)
# Mistral: a special token, a list, and short numbers.
LISTED = _template(
    "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('the number of a call has nine digits') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    '{{ ", " if not loop.last }}{% endfor %}]{% endif %}'
)
# Llama 3: nothing but JSON, once.
BARE = _template(
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% endif %}"
)
NONE = _template("").replace("{{ tools | tojson }}", "").replace("tools", "false")


@cache
def _library() -> Tokenizer:
    library = Tokenizer.from_str(llama_3().to_str())
    # Some of them end within a mark, and begin what is behind it.
    plain = ("<tool_call>", '>\n{"na', '"}}\n</', "}, {", "\n</param", "<think>", "</think>")
    library.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    library.add_special_tokens(["[TOOL_CALLS]"])
    return library


@cache
def codec(template: str) -> LibraryTokenizer:
    """A tokenizer with this template."""
    end = _library().token_to_id("<|eot_id|>")
    return LibraryTokenizer(json.loads(_library().to_str()), Roles(eos=end, chat_template=template))
