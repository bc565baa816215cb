"""This file holds texts by a model and its tokenizer: prompts and conversations in, text out."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from nanochat.errors import InputError
from nanochat.generation.cache import (
    CacheOwner,
    PromptCache,
    load_cache,
    read_prompt,
    save_cache,
)
from nanochat.generation.engine import Runner
from nanochat.generation.options import (
    ChatOptions,
    GenerationOptions,
    Piece,
    read_options,
    split_options,
)
from nanochat.generation.prompts import Prompts, encode_prompt, read_prompts
from nanochat.generation.session import Session, generate
from nanochat.text.chat import Message, chat_prompt
from nanochat.text.codec import TextCodec
from nanochat.text.messages import answer_message

__all__ = ["Writer"]


class Writer:
    """Whatever has a model at work and a tokenizer, and so can write texts: `nanochat.lm.Model`.

    Attributes
    ----------
    engine : Runner
        The model at work, for callers that bring their own tokens.
    tokenizer : TextCodec
        The one that the model was trained with.
    cache_owner : CacheOwner
        Whose prompt caches these are.
    """

    engine: Runner[Any]
    tokenizer: TextCodec
    cache_owner: CacheOwner

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        special: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...] | Iterator[str] | Iterable[Sequence[int]],
        *,
        special: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> list[str]: ...

    def generate(
        self, prompt: Prompts, *, special: bool = False, **options: Unpack[GenerationOptions]
    ) -> str | list[str]:
        """Continue a text, or each of several, and return what follows it, `n` times each.

        Parameters
        ----------
        prompt : str, sequence of int, or iterable of either
            A text; token ids, to which nothing is added; or several, for which a list comes back.
        special : bool
            Whether names of special tokens, such as ``<|im_end|>``, stand for these in a prompt. For texts of your own
            only: as a rule they are ordinary text, so that nobody can end a turn that is not theirs.
        **options : GenerationOptions
            `max_tokens`, `n`, `temperature`, `top_k`, `top_p`, `min_p`, penalties, `logit_bias`, `stop` and `seed`; see
            `nanochat.generation.options.GenerationOptions`. Without any, the most probable tokens are taken; the
            command line has a temperature of 0.7. With `n` above 1 a list comes back for one prompt, too.

        Raises
        ------
        ContextLengthError
            If the prompt and `max_tokens` together exceed the context.
        InputError
            If a prompt is empty or no text, or an option is out of range.
        """
        prompts, single = read_prompts(prompt, self.tokenizer, special=special)
        texts = [""] * len(prompts) * (n := read_options(options).n)
        for piece in self.pieces(prompts, **options):
            texts[piece.row] += piece.text
        return texts[0] if single and n == 1 else texts

    @overload
    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        special: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self,
        prompt: list[str] | tuple[str, ...] | Iterator[str] | Iterable[Sequence[int]],
        *,
        special: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[tuple[int, str]]: ...

    def stream(
        self, prompt: Prompts, *, special: bool = False, **options: Unpack[GenerationOptions]
    ) -> Iterator[str] | Iterator[tuple[int, str]]:
        """Yield what follows a text as it is generated; the parts add up to `generate`'s result.

        Of several texts, or of `n`, each part comes with the number of its text in the list that `generate` returns.
        """
        prompts, single = read_prompts(prompt, self.tokenizer, special=special)
        pieces = self.pieces(prompts, **options)
        if single and read_options(options).n == 1:
            return _texts(pieces)
        return ((piece.row, piece.text) for piece in pieces if piece.text)

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        reasoning: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        reasoning: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Message: ...

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        reasoning: bool = False,
        **options: Unpack[ChatOptions],
    ) -> str | Message:
        """Return the assistant's answer to a conversation.

        Parameters
        ----------
        messages : str or sequence of Message
            ``{"role": "user", "content": "..."}``, as OpenAI's clients write them; a text is one of the user's.
        reasoning : bool
            Return the answer as a message that goes on with the conversation, with what the model thought before as
            ``reasoning_content``; else the text of the answer alone.
        **options : ChatOptions
            As for `generate`, and `tools`, `chat_template`, `chat_template_kwargs`, `thinking` and `thinking_budget`,
            see `nanochat.text.chat.chat_prompt`.

        Raises
        ------
        ContextLengthError
            If the conversation and `max_tokens` together exceed the context.
        InputError
            If a message is malformed, or an option out of range.
        """
        if not reasoning:
            return "".join(self.stream_chat(messages, **options))
        texts = {"reasoning": "", "content": ""}
        for kind, text in self.stream_chat(messages, reasoning=True, **options):
            texts[kind] += text
        return answer_message(texts["content"], texts["reasoning"])

    @overload
    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        reasoning: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Iterator[str]: ...

    @overload
    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        reasoning: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Iterator[tuple[Literal["reasoning", "content"], str]]: ...

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        reasoning: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Iterator[str] | Iterator[tuple[Literal["reasoning", "content"], str]]:
        """Yield the assistant's answer as it is generated; see `chat`.

        With `reasoning`, what the model thinks comes, too, and each part with what it is of, "reasoning" or "content".
        """
        template, generation = split_options(options)
        if (n := read_options(generation).n) != 1:
            raise InputError(f"n={n}, but chat gives one answer: leave n out, and call it for each")
        if generation.get("thoughts") is not None:
            raise InputError(
                "chat finds the thoughts itself: pass thinking_budget, or reasoning=True"
            )
        prompt = chat_prompt(messages, self.tokenizer, **template)
        chosen: GenerationOptions = {**generation, "thoughts": prompt.thoughts}
        pieces = self.pieces([prompt.ids], **chosen)
        return _parts(pieces) if reasoning else _texts(pieces)

    def pieces(
        self, prompts: Sequence[Sequence[int]], **options: Unpack[GenerationOptions]
    ) -> Generator[Piece, None, None]:
        """Continue prompts that are tokens already; see `nanochat.generation.session.generate`."""
        cache = read_options(options).cache
        if cache is not None:
            cache.require_of(self.cache_owner, where="the cache")
        return generate(self.engine, self.tokenizer, prompts, **options)

    def save_cache(
        self, path: str | Path, prompt: str | Sequence[int], *, special: bool = False
    ) -> int:
        """Read a prompt, and keep what the model remembers then in a file; the number of its tokens.

        Prompts that begin with it need not be read again: pass what `load_cache` returns as option `cache`.

        Raises
        ------
        BackendError
            If the backend cannot give that out.
        SaveError
            If the file cannot be written.
        """
        (ids,), _ = read_prompts([prompt], self.tokenizer, special=special)
        save_cache(Path(path), read_prompt(self.engine, ids, self.cache_owner))
        return len(ids)

    def load_cache(self, path: str | Path) -> PromptCache:
        """What `save_cache` kept of a prompt, for the option `cache` of generate, stream and chat.

        Raises
        ------
        FormatError
            If the file is no prompt cache, or damaged.
        InputError
            If it is not there, or another model made it, on another backend, or with another `kv_cache`.
        """
        cache = load_cache(Path(path))
        cache.require_of(self.cache_owner, where=str(path))
        return cache

    def session(
        self, *, rows: int, pages: int | None = None, prefix_cache: bool = True
    ) -> Session[Any]:
        """Texts that begin and end at different times, at most so many at once; see `Session`."""
        return Session(
            self.engine, self.tokenizer, rows=rows, pages=pages, prefix_cache=prefix_cache
        )

    def encode_prompt(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text as a prompt, such as ``<|bos|>`` and those of the text; see `generate`.

        Raises
        ------
        InputError
            If the text is empty or not a string.
        """
        return encode_prompt(text, self.tokenizer, special=special)


def _texts(pieces: Iterator[Piece]) -> Iterator[str]:
    return (piece.text for piece in pieces if piece.text)


def _parts(pieces: Iterator[Piece]) -> Iterator[tuple[Literal["reasoning", "content"], str]]:
    for piece in pieces:
        if piece.reasoning:
            yield "reasoning", piece.reasoning
        if piece.text:
            yield "content", piece.text
