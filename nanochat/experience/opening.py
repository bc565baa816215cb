"""This file holds what a model reads before a prompt: lessons and examples of a library, as there is room for them."""

import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice

from nanochat.errors import InputError
from nanochat.experience.examples import Choice, ranked, traits_of
from nanochat.experience.library import Example, Library, kept, lines_of
from nanochat.text.codec import TextCodec

__all__ = ["Experience"]

_LOGGER = logging.getLogger(__name__)

# Examples that are tried for what is left of a budget, the best first.
_MOST_TRIED = 64


class Experience:
    """The texts that stand before prompts: an `nanochat.evaluation.programs.Opening`.

    Lessons come first, and then examples, the best of them next to the prompt.

    Parameters
    ----------
    library : Library
        Whose budget holds for both together.
    tokenizer : TextCodec
        In whose tokens it is counted.
    room : int
        Most tokens of what stands before a prompt and the prompt together: those of the context without those of an
        answer.
    choice : Choice
        Which examples.
    seed : int
        Of the draw among examples.

    Raises
    ------
    InputError
        If the library is empty.
    """

    def __init__(
        self,
        library: Library,
        tokenizer: TextCodec,
        *,
        room: int,
        choice: Choice = "similar",
        seed: int = 0,
    ) -> None:
        if not library.lessons and not library.examples:
            raise InputError(
                "the library holds no lesson and no example, so it changes nothing: learn from more problems or "
                "samples, or leave it out"
            )
        self._library = library
        self._tokenizer = tokenizer
        self._room = room
        self._choice: Choice = choice
        self._seed = seed
        self._examples = [(example, traits_of(example.prompt)) for example in library.examples]
        self._count = lru_cache(maxsize=None)(lambda text: len(tokenizer.encode(text)))
        self._has_warned = False

    def describe(self) -> Mapping[str, object]:
        """What all of the texts follow from."""
        found: dict[str, object] = {
            "sha256": self._library.identity,
            "budget": self._library.budget,
        }
        if self._examples:
            found |= {"examples": self._choice, "seed": self._seed}
        return found

    def before(self, prompt: str) -> str:
        """The text that stands before a prompt."""
        left = self._room - len(self._tokenizer.opening) - len(self._tokenizer.encode(prompt))
        budget = max(min(self._library.budget, left), 0)
        lessons = lines_of(kept(self._library.lessons, budget=budget, count=self._count))
        chosen = [*self._chosen(prompt, budget - self._count(lessons))] if self._examples else []
        text = lessons + _joined(chosen)
        # Pieces that meet may have more tokens than each by itself.
        while chosen and len(self._tokenizer.encode(text)) > budget:
            chosen.pop()
            text = lessons + _joined(chosen)
        if not text and not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "nothing of the library stands before some prompts, such as %r: there is room for %d tokens of the %d "
                "of its budget",
                prompt[-40:],
                budget,
                self._library.budget,
            )
        return text

    def _chosen(self, prompt: str, budget: int) -> Iterator[Example]:
        best = ranked(self._examples, prompt, choice=self._choice, seed=self._seed)
        for example in islice(best, _MOST_TRIED):
            tokens = self._count(_joined([example]))
            if tokens <= budget:
                budget -= tokens
                yield example


def _joined(examples: list[Example]) -> str:
    return "".join(f"{example.prompt}{example.body}\n\n" for example in reversed(examples))
