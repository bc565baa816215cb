"""This file holds a model as EleutherAI's lm-evaluation-harness knows models: requests in, probabilities and texts out.

``lm_eval.simple_evaluate(model=NanochatLM(model), tasks=[...])`` evaluates any model that `nanochat.lm.Model` loads, on
any backend. What requests mean is as in the harness's own models of transformers [1]_, but for two things. Texts whose
perplexity is asked for are data: names of special tokens in them are spelled out. And what stands before a text is not
predicted, whatever the tokenizer is.

References
----------
.. [1] L. Gao et al., github.com/EleutherAI/lm-evaluation-harness, lm_eval/models/huggingface.py, version 0.4.13.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from nanochat.errors import ContextLengthError, InputError
from nanochat.evaluation.continuations import continuations
from nanochat.generation.options import GenerationOptions
from nanochat.generation.prompts import encode_prompt
from nanochat.generation.sampling import SEEDS
from nanochat.generation.scoring import nats_of_all, scored_ids
from nanochat.lm import Model
from nanochat.ops import Storage
from nanochat.text.chat import Message, render_text

__all__ = ["NanochatLM"]

_LOGGER = logging.getLogger(__name__)

# Of generation, by the names that tasks and this package share; the others are translated.
_OPTIONS = ("top_k", "top_p", "min_p", "repetition_penalty")
_TRANSLATED = {"do_sample", "max_gen_toks", "temperature", "until"}
# What asks for nothing else than what is done.
_NO_CHOICE = {("num_beams", 1), ("use_cache", True)}
# What the command of the harness passes where nobody chose.
_ANY_BATCH = (None, 1, "1", "auto")


@register_model("nanochat")
class NanochatLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model for ``lm_eval.simple_evaluate`` and ``lm_eval.evaluate``.

    Parameters
    ----------
    pretrained : Model or str
        A model at work, or the name of one, see `nanochat.lm.Model.from_pretrained`.
    backend, kv_cache, num_threads, revision
        See there; for a model that is given by its name.
    seed : int
        Of texts that are drawn: request i draws with ``seed + i``.
    batch_size : int or str, optional
        Of the harness's own command, which passes one. How much is read at once depends on its tokens instead.

    Raises
    ------
    InputError
        If there is nothing that can stand before a text, in requests that need it.
    """

    def __init__(
        self,
        pretrained: Model | str,
        *,
        backend: str = "auto",
        kv_cache: Storage = "float32",
        num_threads: int | None = None,
        revision: str | None = None,
        seed: int = 0,
        batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        if batch_size not in _ANY_BATCH:
            _LOGGER.warning(
                "batch_size=%s is not used: as many requests are read at once as their tokens allow",
                batch_size,
            )
        self.model = (
            pretrained
            if isinstance(pretrained, Model)
            else Model.from_pretrained(
                pretrained,
                backend=backend,
                kv_cache=kv_cache,
                num_threads=num_threads,
                revision=revision,
            )
        )
        self.seed = seed

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads."""
        return self.model.config.context_length

    @property
    def max_gen_toks(self) -> int:
        """Most tokens of a text, where a task does not say."""
        return 256

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._token(self.model.tokenizer.eos, "ends a text")

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text with nothing before it."""
        tokenizer = self.model.tokenizer
        first = tokenizer.opening[0] if tokenizer.opening else tokenizer.eos
        return self._token(tokenizer.bos if first is None else first, "can stand before a text")

    def _token(self, token: int | None, does: str) -> int:
        if token is None:
            raise InputError(
                f"the tokenizer of {self.model.name} has no token that {does}, which a request needs: choose other "
                "tasks, or give them a description or examples"
            )
        return token

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **kwargs: object,  # noqa: ARG002
    ) -> list[int]:
        """Tokens of a text, in which names of special tokens stand for these, as chat templates write them.

        Those that stand before every text come first, if the text does not write them itself.
        """
        tokenizer = self.model.tokenizer
        if add_special_tokens is False:
            return tokenizer.encode(string, specials=True)
        return encode_prompt(string, tokenizer, special=True) if string else [*tokenizer.opening]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: object,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        pairs = []
        num_cut = 0
        for (_, text), context, ids in requests:
            if not ids:
                raise InputError(
                    f"the answer {text!r:.80} is part of the last token of what it follows, so nothing is left to "
                    "score: let it begin with a space or a line break (target_delimiter of the task)"
                )
            if len(ids) > self.max_length:
                raise ContextLengthError(
                    f"an answer of {len(ids)} tokens does not fit the model's context of {self.max_length}: choose "
                    "other tasks, or a model with a longer context"
                )
            # The last token is not read.
            room = self.max_length + 1 - len(ids)
            num_cut += len(context) > room
            pairs.append(((context or [self.prefix_token_id])[-room:], ids))
        self._warn_of_cuts(num_cut, len(requests), "the context and an answer")
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with _bar("loglikelihood", len(requests), disable_tqdm) as update:
            for number, logprob, is_greedy in continuations(self.model.engine, pairs):
                answers[number] = logprob, is_greedy
                self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
                update(1)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The logarithm of the probability of each text, read in windows as long as the context.

        Of a text of n windows and a rest, the rest is read at the end of a whole window, and the n know nothing of each
        other but one token.
        """
        texts = [request.args[0] for request in requests]
        # A text of nothing is certain.
        sequences = {
            number: scored_ids(text, self.model.tokenizer)
            for number, text in enumerate(texts)
            if text
        }
        num_tokens = sum(len(ids) - 1 for ids in sequences.values())
        with _bar("loglikelihood_rolling, tokens of", num_tokens, disable_tqdm) as update:
            nats = nats_of_all(
                self.model.engine,
                [*sequences.values()],
                convention="lm-eval",
                size=self.max_length,
                progress=update,
            )
        found = dict(zip(sequences, nats, strict=True))
        answers = [-found.get(number, 0.0) for number in range(len(texts))]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a string that ends it, which is left out, or to `max_gen_toks` tokens.

        Requests with the same options are written together. The model's own end tokens end a text, too.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(number)
        texts = [""] * len(requests)
        with _bar("generate_until", len(requests), disable_tqdm) as update:
            for numbers in groups.values():
                for number, text in self._written(requests, numbers):
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    update(1)
        return texts

    def _written(
        self, requests: Sequence[Instance], numbers: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        """Write texts of requests with the same options; the number and the text of each as it ends."""
        options = self._options(requests[numbers[0]].args[1])
        max_tokens = options["max_tokens"] or 0
        room = self.max_length - max_tokens
        if room < 1:
            raise ContextLengthError(
                f"max_gen_toks={max_tokens} leaves no room for a prompt, because the model's context holds "
                f"{self.max_length} tokens: set fewer in the task's generation_kwargs, or take a model with a longer "
                "context"
            )
        prompts = {}
        for number in numbers:
            ids = self.tok_encode(requests[number].args[0])
            prompts[number] = ids or [self.prefix_token_id]
        num_cut = sum(len(ids) > room for ids in prompts.values())
        self._warn_of_cuts(num_cut, len(numbers), f"the context and max_gen_toks={max_tokens}")
        # Those that take longest begin first.
        ordered = sorted(numbers, key=lambda number: len(prompts[number]), reverse=True)
        options["seed"] = [(self.seed + number) % SEEDS for number in ordered]
        texts = dict.fromkeys(ordered, "")
        pieces = self.model.pieces([prompts[number][-room:] for number in ordered], **options)
        for piece in pieces:
            number = ordered[piece.row]
            texts[number] += piece.text
            if piece.finish_reason is not None:
                yield number, texts.pop(number)

    def _options(self, given: Mapping[str, object]) -> GenerationOptions:
        """How texts are written, from a task's ``generation_kwargs``."""
        wanted = normalize_gen_kwargs(dict(given), self.max_gen_toks)
        specials = self.model.tokenizer.specials
        until = [text for text in wanted["until"] if text]
        options = {
            "max_tokens": wanted["max_gen_toks"],
            # Drawing without a temperature is drawing as the model has it.
            "temperature": float(wanted.get("temperature", 1.0)) if wanted["do_sample"] else 0.0,
            "stop": [text for text in until if text not in specials],
            "stop_token_ids": [specials[text] for text in until if text in specials],
            **{name: wanted[name] for name in _OPTIONS if name in wanted},
        }
        ignored = {
            name: value
            for name, value in wanted.items()
            if name not in {*_TRANSLATED, *_OPTIONS} and (name, value) not in _NO_CHOICE
        }
        if ignored:
            _LOGGER.warning(
                "options of a task that this package does not know are not used: %s", ignored
            )
        return cast(GenerationOptions, options)

    def _warn_of_cuts(self, num_cut: int, total: int, what: str) -> None:
        if num_cut:
            _LOGGER.warning(
                "%s of %d requests exceed the model's context of %d tokens in %d: the first tokens of these contexts "
                "are left out",
                what,
                total,
                self.max_length,
                num_cut,
            )

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; without a generation prompt, the last message can be continued.

        Raises
        ------
        InputError
            If the model has no chat template, or that refuses the conversation.
        """
        self._require_template()
        try:
            return self._conversation(chat_history, add_generation_prompt)
        except InputError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) in (0, len(chat_history)):
                raise
            _LOGGER.warning("the model's chat template knows no system messages: left out")
            return self._conversation(others, add_generation_prompt)

    def _conversation(self, messages: list[Message], reply: bool) -> str:
        text = render_text(messages, self.model.tokenizer, reply=reply)
        last = str(messages[-1]["content"]).strip()
        return text if reply else text[: text.rindex(last) + len(last)]

    def _require_template(self) -> str:
        if not self.model.tokenizer.chat_template:
            raise InputError(
                f"{self.model.name} has no chat template: evaluate it without (leave apply_chat_template out)"
            )
        return self.model.tokenizer.chat_template

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its stored requests of one model from those of another by."""
        name = self.model.name.replace("/", "__")
        return f"{name}-{self.model.tokenizer.fingerprint[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's chat template in Jinja; empty if none is wanted."""
        return self._require_template() if chat_template else ""


@contextmanager
def _bar(what: str, total: int, is_hidden: bool) -> Iterator[Callable[[int], object]]:
    """A bar on stderr that shows how many requests of a kind are done, where that is a terminal."""
    # None: tqdm asks whether it is.
    with tqdm(total=total, desc=f"{what} requests", disable=is_hidden or None) as bar:
        yield bar.update
