"""This file holds models that call tools, with chat templates that write calls as known ones do."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from nanochat import backends
from nanochat.bundle import Bundle
from nanochat.generation.engine import Choices, Engine, Runner
from nanochat.generation.sampling import Sampler
from nanochat.lm import Model
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3
from tests.parity.random_models import random_bundle

__all__ = ["BARE", "HERMES", "LISTED", "MARKED", "NONE", "THINKER", "THINKING", "Parrot", "codec"]
__all__ += ["guesser", "parrot"]


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
# The same, of models that think: one begins its thoughts itself, for the other its template does.
_THOUGHT = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
THINKER = _template(_THOUGHT + _HERMES)
THINKING = _template(_THOUGHT + _HERMES, begins="<think>\n")
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


def _bundle(template: str) -> Bundle:
    return random_bundle(
        tokenizer=codec(template), vocab_size=codec(template).vocab_size, context_length=2048
    )


@cache
def guesser(template: str) -> Model:
    """A model of random weights, to which a grammar alone gives sense."""
    return Model.from_bundle(_bundle(template), backend="reference")


class Parrot(Engine[Any, Any, Any]):
    """A model that says a text, as far as it may, whatever it is asked."""

    script: Sequence[int] = ()

    def draw(
        self,
        state: Any,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        samplers: Sequence[Sampler],
        *,
        vocab_size: int,
        with_logits: bool = False,
        drafted: Sequence[int] = (),
    ) -> Choices:
        """See `nanochat.generation.engine.Runner`."""
        for place, (row, ids) in enumerate(zip(rows, tokens, strict=True)):
            start = state.length(row)
            if place >= len(samplers):
                # Of its prompt, something is left.
                self._begins.pop(row, None)
            elif start == 0 or row not in self._begins:
                self._begins[row] = start + len(ids)
        return Runner.draw(
            self,
            state,
            rows,
            tokens,
            samplers,
            vocab_size=vocab_size,
            with_logits=with_logits,
            drafted=drafted,
        )

    def step(
        self,
        state: Any,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        every: bool = False,
    ) -> NDArray[np.float32]:
        """See `nanochat.generation.engine.Runner`."""
        ends = [
            (row, state.length(row) + number + 1)
            for row, ids in zip(rows, tokens, strict=True)
            for number in range(len(ids))
            if every or number == len(ids) - 1
        ]
        logits = super().step(state, rows, tokens, every=every)
        for place, (row, end) in enumerate(ends):
            said = end - self._begins.get(row, end)
            logits[place, self.script[min(max(said, 0), len(self.script) - 1)]] = 100
        return logits

    @property
    def _begins(self) -> dict[int, int]:
        """How long the prompt of each row is."""
        found: dict[int, int] = self.__dict__.setdefault("_lengths", {})
        return found


def parrot(template: str, text: str) -> Model:
    """A model that says a text, with special tokens by their names, and ends."""
    bundle = _bundle(template)
    ops = backends.get("reference")
    engine = Parrot(bundle.config, ops.prepare(bundle.weights), ops)
    engine.script = bundle.tokenizer.encode(text + "<|eot_id|>", specials=True)
    return Model.from_bundle(bundle, backend=engine)
