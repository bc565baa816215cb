"""The engine's thread outlives whatever goes wrong in a step, and takes nobody else's text with it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from nanochat.backends.reference.ops import Array, ReferenceOps
from nanochat.errors import InputError, NanochatError, NumericError
from nanochat.generation.constraint import Matcher
from nanochat.generation.engine import Engine
from nanochat.generation.options import GenerationOptions, Piece
from nanochat.generation.session import Session, generate
from nanochat.init import freeze
from nanochat.serve.engine import (
    Answer,
    EngineEndedError,
    EngineThread,
    QueueFullError,
    StepFailedError,
)
from tests.parity.random_models import random_config, random_tokenizer, random_weights

TOKENIZER = random_tokenizer()
CONFIG = random_config(context_length=64)
BAD, NAN, SLOW = 13, 14, 15


class FragileOps(ReferenceOps):
    """Fails if it reads one token, gives NaN after another, and waits with a third until it may go on."""

    tokens_read: Array

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()

    def embed(self, tokens: Array, table: Any) -> Array:
        if BAD in tokens:
            raise RuntimeError("a kernel failed")
        if SLOW in tokens:
            self.may_go_on.wait(20)
        self.tokens_read = tokens
        return super().embed(tokens, table)

    def project(self, x: Array, *linears: Any) -> tuple[Array, ...]:
        found = super().project(x, *linears)
        if found[0].shape[-1] == CONFIG.vocab_size:
            found[0][0, self.tokens_read[0][-found[0].shape[1] :] == NAN] = np.nan
        return found


OPS = FragileOps()
ENGINE: Engine[Any, Any, Any] = Engine(CONFIG, OPS.prepare(freeze(random_weights(CONFIG))), OPS)
OPTIONS: GenerationOptions = {
    "max_tokens": 12,
    "ignore_eos": True,
    "logit_bias": {BAD: -100.0, SLOW: -100.0},
}


def alone(ids: list[int], **options: Any) -> list[int]:
    wanted: Any = {**OPTIONS, **options}
    return [piece.token for piece in generate(ENGINE, TOKENIZER, [ids], **wanted)]


async def tokens(answer: Answer) -> list[int]:
    return [piece.token async for pieces in answer.pieces() for piece in pieces]


def with_thread(
    test: Callable[[EngineThread], Coroutine[Any, Any, None]], *, rows: int = 3, waiting: int = 8
) -> None:
    async def run() -> None:
        thread = EngineThread()
        try:
            session = Session(ENGINE, TOKENIZER, rows=rows)
            await thread.call(lambda: thread.run(session, most_texts=rows + waiting))
            await test(thread)
            assert thread.is_alive
            # It still serves.
            assert await tokens(thread.submit([[9]], OPTIONS, n=1)) == alone([9])
            assert thread.num_texts == len(thread.open) == 0
            assert thread.load.running == thread.load.waiting == 0
        finally:
            await thread.stop()

    asyncio.run(run())


def test_texts_that_come_together_are_those_that_each_would_be_alone() -> None:
    async def test(thread: EngineThread) -> None:
        answers = [thread.submit([[number, 7]], OPTIONS, n=1) for number in range(20, 29)]
        found = await asyncio.gather(*map(tokens, answers))
        assert found == [alone([number, 7]) for number in range(20, 29)]

    with_thread(test)


def test_a_step_that_fails_ends_its_texts_and_the_next_ones_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(thread: EngineThread) -> None:
        waiting = [thread.submit([[number]], OPTIONS, n=1) for number in (21, 22, 23, 24)]
        answers = [tokens(thread.submit([[BAD]], OPTIONS, n=1)), *map(tokens, waiting)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert isinstance(found[0], StepFailedError)
        for number, one in zip((21, 22, 23, 24), found[1:], strict=True):
            # In the step that failed, or whole.
            assert isinstance(one, StepFailedError) or one == alone([number])

    with_thread(test)
    assert "a kernel failed" in caplog.text


class Free:
    """A form that is none."""

    error = None

    def fill(self, allowed: Any) -> None:
        allowed[...] = 2**32 - 1

    def push(self, token: int) -> None:
        pass

    def count(self, tokens: Sequence[int]) -> int:
        return len(tokens)

    def forced(self) -> list[int]:
        return []

    def copy(self) -> "Free":
        return self


class FailsToFill(Free):
    def fill(self, allowed: Any) -> None:
        del allowed
        raise RuntimeError("a library failed")


class Only(Free):
    """A form of one token, again and again."""

    def __init__(self, token: int) -> None:
        self._token = token

    def fill(self, allowed: Any) -> None:
        allowed[...] = 0
        allowed[self._token // 32] = 1 << self._token % 32


class Form:
    """What each text shall be held to, one after the other; a library that fails where there is no more."""

    def __init__(self, *matchers: Matcher) -> None:
        self.matchers = [*matchers]

    def matcher(self) -> Matcher:
        if not self.matchers:
            raise RuntimeError("a library failed")
        return self.matchers.pop(0)


def test_a_text_that_fails_as_it_gets_its_row_does_not_fail_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(thread: EngineThread) -> None:
        form = Form(Free(), FailsToFill())
        options: GenerationOptions = {**OPTIONS, "n": 2, "seed": 0, "constraint": form}
        async with asyncio.timeout(20):
            with pytest.raises(NanochatError, match="the log says why"):
                await tokens(thread.submit([[21, 22]], options, n=2))

    with_thread(test)
    assert "a library failed" in caplog.text


def test_a_text_that_ends_in_the_step_in_which_another_of_its_answer_fails_harms_nobody() -> None:
    async def test(thread: EngineThread) -> None:
        # The first one's token fails as it is read, in the step in which the second ends as it gets its row.
        form = Form(Only(BAD), Only(30), Free())
        options: GenerationOptions = {
            "max_tokens": 12, "n": 3, "seed": 0, "constraint": form, "stop_token_ids": [30]
        }  # fmt: skip
        async with asyncio.timeout(20):
            with pytest.raises(StepFailedError):
                await tokens(thread.submit([[21, 22]], options, n=3))

    with_thread(test)


def test_texts_that_ended_before_their_step_failed_are_whole() -> None:
    async def test(thread: EngineThread) -> None:
        OPS.may_go_on.clear()
        options: GenerationOptions = {**OPTIONS, "max_tokens": 1, "n": 3, "seed": 0}
        # The first reads the prompt, and the others end as they get their rows: in the step that fails.
        ending = thread.submit([[SLOW, 22]], options, n=3)
        while not thread.step_seconds:
            await asyncio.sleep(0.001)
        failing = thread.submit([[BAD]], OPTIONS, n=1)
        OPS.may_go_on.set()
        async with asyncio.timeout(20):
            with pytest.raises(StepFailedError):
                await tokens(failing)
            assert len(await tokens(ending)) == 3

    with_thread(test)


@pytest.mark.parametrize("n", [1, 2])
def test_a_request_that_cannot_be_begun_is_told_so_and_harms_nobody(
    n: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(thread: EngineThread) -> None:
        other = thread.submit([[21]], OPTIONS, n=1)
        # None of its texts can begin, or the second cannot.
        form = Form(*[Free()] * (n - 1))
        options: GenerationOptions = {**OPTIONS, "n": n, "seed": 0, "constraint": form}
        async with asyncio.timeout(20):
            with pytest.raises(StepFailedError, match="failed as it began this request"):
                await thread.submit([[22]], options, n=n).accepted()
        assert await tokens(other) == alone([21])

    with_thread(test)
    assert "a library failed" in caplog.text


class Deadly:
    """A watcher with an error, which the thread does not survive."""

    def stepped(self, seconds: float, pieces: Sequence[Piece], session: Session[Any]) -> None:
        del seconds, pieces, session
        raise RuntimeError("a watcher failed")

    def began(self, answer: Answer) -> None: ...

    def ended(self, answer: Answer) -> None: ...


def test_a_thread_that_dies_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        deaths: list[str] = []
        thread = EngineThread(died=lambda: deaths.append("died"))
        session = Session(ENGINE, TOKENIZER, rows=1)
        await thread.call(lambda: thread.run(session, most_texts=9))
        thread.watch(Deadly())
        OPS.may_go_on.clear()
        # One is being written, and nothing that is asked for meanwhile is ever taken up.
        answers = [thread.submit([ids], OPTIONS, n=1) for ids in ([SLOW, 21], [22])]
        while not thread.step_seconds:
            await asyncio.sleep(0.001)
        answers.append(thread.submit([[23]], OPTIONS, n=1))
        call = asyncio.create_task(thread.call(lambda: 5))
        await asyncio.sleep(0)
        OPS.may_go_on.set()

        async with asyncio.timeout(20):
            found = await asyncio.gather(*map(tokens, answers), call, return_exceptions=True)

        assert [type(error) for error in found] == [EngineEndedError] * 4
        assert (thread.is_alive, thread.num_texts, len(thread.open)) == (False, 0, 0)
        assert deaths == ["died"]
        with pytest.raises(EngineEndedError):
            thread.submit([[21]], OPTIONS, n=1)
        with pytest.raises(EngineEndedError):
            await thread.call(lambda: 5)

    asyncio.run(run())
    assert "a watcher failed" in caplog.text


def test_who_waits_when_the_thread_is_stopped_is_told_so() -> None:
    async def run() -> None:
        deaths: list[str] = []
        thread = EngineThread(died=lambda: deaths.append("died"))
        session = Session(ENGINE, TOKENIZER, rows=1)
        await thread.call(lambda: thread.run(session, most_texts=9))
        answers = [thread.submit([[number]], OPTIONS, n=1) for number in (21, 22)]
        await thread.stop()
        found = await asyncio.gather(*map(tokens, answers), return_exceptions=True)
        assert list(map(str, found)) == ["the server is ending"] * 2
        assert deaths == []

    asyncio.run(run())


def test_logits_that_are_not_finite_end_one_text_only() -> None:
    async def test(thread: EngineThread) -> None:
        good, bad = (thread.submit([[number]], OPTIONS, n=1) for number in (21, NAN))
        found = await asyncio.gather(tokens(good), tokens(bad), return_exceptions=True)
        assert found[0] == alone([21])
        assert isinstance(found[1], NumericError)

    with_thread(test)


def test_what_the_session_refuses_is_raised_before_anything_is_written() -> None:
    async def test(thread: EngineThread) -> None:
        answer = thread.submit([[10_000]], OPTIONS, n=1)
        with pytest.raises(InputError, match="token 10000"):
            await answer.accepted()

    with_thread(test)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_answer_that_is_cancelled_gives_no_more_and_frees_its_rows(after: int) -> None:
    async def test(thread: EngineThread) -> None:
        other = thread.submit([[21]], OPTIONS, n=1)
        answer = thread.submit([[22], [23]], {**OPTIONS, "n": 2, "seed": 0}, n=2)
        count = 0
        if after:
            async for pieces in answer.pieces():
                count += len(pieces)
                if count >= after:
                    break
        answer.cancel()
        assert await tokens(other) == alone([21])
        assert answer.num_left == 0

    with_thread(test)


def test_an_error_with_which_it_is_cancelled_is_what_its_reader_gets() -> None:
    async def test(thread: EngineThread) -> None:
        answer = thread.submit([[22]], OPTIONS, n=1)
        answer.cancel(TimeoutError("too late"))
        with pytest.raises(TimeoutError, match="too late"):
            await tokens(answer)

    with_thread(test)


def test_more_than_may_wait_is_refused_at_once() -> None:
    async def test(thread: EngineThread) -> None:
        answers = [thread.submit([[21]], OPTIONS, n=1) for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 texts are being written or wait"):
            thread.submit([[22]], OPTIONS, n=1)
        await asyncio.gather(*map(tokens, answers))

    with_thread(test, rows=1, waiting=2)


def test_functions_are_called_between_steps_and_their_errors_are_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def test(thread: EngineThread) -> None:
        answer = thread.submit([[21]], OPTIONS, n=1)
        assert await thread.call(lambda: 5) == 5
        with pytest.raises(ValueError, match="no"):
            await thread.call(fail)
        assert await tokens(answer) == alone([21])

    with_thread(test)


def test_known_tokens_are_those_of_all_prompts_each_counted_once() -> None:
    prompts = [list(range(20, 40)), list(range(60, 90))]

    async def test(thread: EngineThread) -> None:
        await tokens(thread.submit(prompts, OPTIONS, n=1))
        again = thread.submit(prompts, {**OPTIONS, "n": 2, "seed": 0}, n=2)
        await tokens(again)
        # All but the last token, whose logits are needed.
        assert again.cached == again.num_prompt_tokens - len(prompts)

    with_thread(test)
