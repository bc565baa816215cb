"""This file holds the thoughts of one text as they grow: told apart by their marks, counted, and ended in time."""

from nanochat.text.codec import TextCodec
from nanochat.text.thinking import Thoughts, ThoughtSplitter
from nanochat.text.tokenizer import StreamDecoder

__all__ = ["Mind"]

# Tokens over the budget by which a character, or a mark that may have begun, can be ended by the model itself.
_GRACE = 8


class Mind:
    """What a text thinks.

    Its decisions depend on its own tokens only, so they are the same whatever is written beside it.
    """

    def __init__(self, thoughts: Thoughts, tokenizer: TextCodec) -> None:
        self._thoughts = thoughts
        self._tokenizer = tokenizer
        self._splitter = ThoughtSplitter(thoughts)
        # Special tokens stand for no text, but may stand in marks.
        marks = thoughts.marks.opening + thoughts.marks.closing
        self._names = {token: name for name, token in tokenizer.specials.items() if name in marks}
        # Of all thoughts, and of this one.
        self._num_tokens = self._num_fresh = 0

    @property
    def is_thinking(self) -> bool:
        """Whether the text is inside a thought, which no form binds."""
        return self._splitter.is_inside

    @property
    def is_answering(self) -> bool:
        """Whether the answer has begun, in which no thought begins any more."""
        return self._splitter.is_answering

    def push(self, text: str, token: int | None) -> tuple[str, str]:
        """What of the thoughts, and what of the answer, a token's text releases; without a token, all that is left."""
        if token is None:
            last, said = self._splitter.push(text)
            thought, rest = self._splitter.flush()
            return last + thought, said + rest
        was_inside = self._splitter.is_inside
        if was_inside:
            self._num_tokens += 1
            self._num_fresh += 1
        if not self._splitter.is_answering:
            text += self._names.get(token, "")
        found = self._splitter.push(text)
        if not was_inside:
            self._num_fresh = 0
        return found

    def is_over(self, token: int, decoder: StreamDecoder) -> bool:
        """Whether the thought has to be ended, in place of this token, which was chosen."""
        budget = self._thoughts.budget
        if budget is None or not self._splitter.is_inside or self._num_tokens < budget:
            return False
        if self._num_tokens >= budget + _GRACE:
            return True
        name = self._names.get(token, "")
        text = name or self._tokenizer.token_bytes(token).decode("utf-8", "replace")
        return not (decoder.is_inside_character or self._splitter.may_end_with(text))

    def ending(self) -> list[int]:
        """The tokens that end the thought."""
        text = self._thoughts.ending(empty=not self._num_fresh)
        return self._tokenizer.encode(text, specials=True)
