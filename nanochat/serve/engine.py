"""This file holds the engine thread, which alone runs the model, and the answers that it writes.

The event loop never computes: it leaves orders, which the thread takes between two steps. After each step the thread
hands over all that came of it, for all answers, by one call of the loop.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from nanochat.errors import NanochatError
from nanochat.generation.options import GenerationOptions, Piece
from nanochat.generation.places import Load
from nanochat.generation.session import Session

__all__ = [
    "Answer",
    "EngineEndedError",
    "EngineThread",
    "QueueFullError",
    "StepFailedError",
    "Watcher",
]

Result = TypeVar("Result")

_LOGGER = logging.getLogger(__name__)
# How often it is looked whether a thread has ended.
_LOOK_SECONDS = 0.02


class QueueFullError(NanochatError):
    """More texts than the server lets wait."""


class StepFailedError(NanochatError):
    """A step of the model that failed, with all texts that it would have continued."""


class EngineEndedError(NanochatError):
    """An engine that computes nothing any more."""


class Watcher(Protocol):
    """Whoever counts what the engine does."""

    def stepped(self, seconds: float, pieces: Sequence[Piece], session: Session[Any]) -> None:
        """Note that a step has ended; called in the engine's thread."""
        ...

    def began(self, answer: "Answer") -> None:
        """Note that the first token of an answer is there; called by the loop."""
        ...

    def ended(self, answer: "Answer") -> None:
        """Note that an answer has ended, or was cancelled; called by the loop."""
        ...


class _Event(NamedTuple):
    """What the thread has to say of an answer."""

    answer: "Answer"
    pieces: tuple[Piece, ...] = ()
    error: Exception | None = None
    is_accepted: bool = False
    # Whether no piece will come any more, though texts have not ended.
    is_over: bool = False


class Answer:
    """The texts that are written for one request, as they come; of an event loop.

    Text i of prompt p is number ``p * n + i``.
    """

    def __init__(
        self, engine: "EngineThread", *, num_texts: int, n: int, num_prompt_tokens: int
    ) -> None:
        self._engine = engine
        self._n = n
        self.num_texts = num_texts
        self.num_prompt_tokens = num_prompt_tokens
        # By the first text of a prompt, the tokens of it that were known.
        self._cached: dict[int, int] = {}
        # Tokens that were guessed for texts that have ended, and those of them that stood.
        self.num_drafted = self.num_accepted = 0
        # How the last text ended.
        self.finish_reason: str | None = None
        # Texts that have not ended.
        self._left = num_texts
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        self._is_accepted = self._is_cancelled = False
        self._changed = asyncio.Event()
        # When it was asked for, a step first took one of its texts, the first token was there, and the last.
        self.asked = time.monotonic()
        self.started: float | None = None
        self.begun: float | None = None
        self.over: float | None = None
        self.num_tokens = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over: Callable[[], None] | None = None

    @property
    def cached(self) -> int:
        """Tokens of its prompts that were known; each prompt counts once, however many texts follow it."""
        return sum(self._cached.values())

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody did not want the rest."""
        return self._is_cancelled

    @property
    def error(self) -> Exception | None:
        """What ended it too early."""
        return self._error

    async def accepted(self) -> None:
        """Wait until the engine has taken the request, or raise why it has not."""
        while not self._is_accepted and self._error is None:
            await self.changed()
        if not self._is_accepted:
            assert self._error is not None
            raise self._error

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """All pieces, in the lists in which they came; it raises what ended them too early."""
        while True:
            if found := self.take_pieces():
                yield found
            elif self.is_over:
                return
            else:
                await self.changed()

    def take_pieces(self) -> list[Piece]:
        """The pieces that have come since the last time; then, what ended them too early is raised."""
        found, self._pieces = self._pieces, []
        if not found and self._error is not None:
            raise self._error
        return found

    @property
    def is_over(self) -> bool:
        """Whether no more pieces will come than those that can be taken."""
        return not self._left

    async def changed(self) -> None:
        """Wait until more can be taken, or it is over."""
        self._changed.clear()
        await self._changed.wait()

    @property
    def num_left(self) -> int:
        """Texts that have not ended."""
        return self._left

    def cancel(self, error: Exception | None = None) -> None:
        """End all texts that have not ended: the next step is without them; whoever waits for them gets the error."""
        if self._left and not self._is_cancelled:
            self._is_cancelled = True
            self._error = self._error or error
            self._engine.cancel(self)
            self._changed.set()

    def when_over(self, function: Callable[[], None]) -> None:
        """Call a function once no text is left."""
        self._over = function

    def limit(self, seconds: float, error: Exception) -> None:
        """Cancel it if it has not ended in time."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self.cancel, error)

    def take(self, event: _Event) -> int:
        """Note what the thread says, in the loop; the number of texts that have ended with it."""
        before = self._left
        self._is_accepted |= event.is_accepted
        self.num_tokens += len(event.pieces)
        for piece in event.pieces:
            self._error = self._error or piece.error
            if piece.row % self._n == 0:
                self._cached[piece.row] = piece.cached
            self.finish_reason = piece.finish_reason or self.finish_reason
            if piece.finish_reason is not None:
                self._left -= 1
                self.num_drafted += piece.drafted
                self.num_accepted += piece.accepted
            if piece.error is None:
                self._pieces.append(piece)
        self._error = self._error or event.error
        if event.is_over:
            self._left = 0
        if not self._left:
            self.over = time.monotonic()
            if self._timer is not None:
                self._timer.cancel()
            if self._over is not None:
                self._over()
            self._timer = self._over = None
        self._changed.set()
        return before - self._left


class EngineThread:
    """A thread, and the session that it runs; the model is loaded in it, too, since some backends belong to a thread.

    Parameters
    ----------
    turn : Lock, optional
        Held while a step is computed: engines that share it take turns, since two would be in each other's way.
    died : callable, optional
        Called by the loop if the thread ends though nobody has stopped it.
    """

    def __init__(
        self,
        *,
        turn: AbstractContextManager[Any] | None = None,
        died: Callable[[], object] | None = None,
    ) -> None:
        self._session: Session[Any] | None = None
        # Texts that may be written or wait at the same time.
        self.most_texts = 0
        self._turn = threading.Lock() if turn is None else turn
        self._watcher: Watcher | None = None
        self._died = died
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # By the session's number of a text: whose it is, and which of them. Of the thread.
        self._owners: dict[int, tuple[Answer, int]] = {}
        self._events: list[_Event] = []
        # Texts that were asked for and have not ended, and their answers. Of the loop.
        self.num_texts = 0
        self.open: set[Answer] = set()
        # What `call` waits for. Of the loop, too.
        self._calls: set[asyncio.Future[Any]] = set()
        self._has_ended = False
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def step_seconds(self) -> float:
        """For how long the step takes that is being computed; 0 if none is."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def load(self) -> Load:
        """What the session has to do; about right while a step is computed."""
        assert self._session is not None
        return self._session.load

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return not self._has_ended and self._thread.is_alive()

    def run(self, session: Session[Any], *, most_texts: int) -> None:
        """Take texts for a session, which nobody else uses from now on; to be called by `call`."""
        self._session, self.most_texts = session, most_texts

    def watch(self, watcher: Watcher) -> None:
        """Tell somebody of all that is done from now on."""
        self._watcher = watcher

    def submit(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, *, n: int
    ) -> Answer:
        """Ask for `n` texts after each prompt.

        Raises
        ------
        QueueFullError
            If too many texts wait already.
        EngineEndedError
            If there is nobody who would write them.
        """
        self._require_life()
        count = len(prompts) * n
        if self.num_texts + count > self.most_texts:
            raise QueueFullError(
                f"{self.num_texts} texts are being written or wait, and this server takes {self.most_texts}: ask again "
                "later"
            )
        tokens = sum(map(len, prompts))
        answer = Answer(self, num_texts=count, n=n, num_prompt_tokens=tokens)
        self.open.add(answer)
        self.num_texts += count
        self._orders.put(partial(self._add, answer, prompts, options))
        return answer

    def cancel(self, answer: Answer) -> None:
        """See `Answer.cancel`."""
        self._orders.put(partial(self._cancel, answer))

    async def call(self, function: Callable[[], Result]) -> Result:
        """What a function gives that the thread calls between two steps.

        Raises
        ------
        EngineEndedError
            If the thread has ended, or ends before.
        """
        self._require_life()
        future: asyncio.Future[Result] = self._loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)

        def settle(method: Callable[[Any], None], value: object) -> None:
            if not future.done():
                method(value)

        def order() -> None:
            try:
                result = function()
            except Exception as error:
                self._tell_loop(settle, future.set_exception, error)
            else:
                self._tell_loop(settle, future.set_result, result)

        self._orders.put(order)
        return await future

    async def stop(self) -> None:
        """End the thread after its step, and wait for that; texts that have not ended give no more pieces."""
        self._orders.put(None)
        while self._thread.is_alive():
            await asyncio.sleep(_LOOK_SECONDS)

    def _require_life(self) -> None:
        if not self.is_alive:
            raise EngineEndedError("the engine of this model has ended: ask again later")

    # What follows runs in the thread.

    def _run(self) -> None:
        error: NanochatError = EngineEndedError("the engine has died while this was being done")
        has_died = True
        try:
            while self._take_orders():
                if self._session is not None and not self._session.is_idle:
                    self._step(self._session)
                self._hand_over()
            error, has_died = StepFailedError("the server is ending"), False
        except Exception:
            _LOGGER.exception("the engine has died")
        finally:
            self._hand_over()
            self._tell_loop(self._end_all, error, has_died)

    def _take_orders(self) -> bool:
        """Do what was asked for; wait for it if there is nothing else to do. Whether the thread shall go on."""
        waits = self._session is None or self._session.is_idle
        while True:
            try:
                order = self._orders.get(block=waits)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            waits = False

    def _step(self, session: Session[Any]) -> None:
        self._step_began = began = time.monotonic()
        try:
            with self._turn:
                pieces = session.step()
        except Exception:
            _LOGGER.exception("a step failed; its texts end")
            # Before texts are stepped, it may fail as they get their rows: whose fault that is, nobody knows.
            self._fail(session.stepping or list(self._owners))
            return
        finally:
            self._step_began = None
        for row in session.stepping:
            if row in self._owners and self._owners[row][0].started is None:
                self._owners[row][0].started = began
        for piece in pieces:
            if piece.row not in self._owners:
                # Of a text that ended when a step failed.
                continue
            answer, number = self._owners[piece.row]
            if piece.finish_reason is not None:
                del self._owners[piece.row]
            self._events.append(_Event(answer=answer, pieces=(piece._replace(row=number),)))
        if self._watcher is not None:
            self._watcher.stepped(time.monotonic() - began, pieces, session)

    def _fail(self, rows: Sequence[int]) -> None:
        error = StepFailedError("the model failed while this text was being written")
        assert self._session is not None
        # Those of them that have ended are whole: the next step says what is left of them.
        for answer in {self._owners[row][0] for row in filter(self._session.holds, rows)}:
            self._end(answer, keep=False)
            self._events.append(_Event(answer=answer, error=error, is_over=True))

    def _add(
        self, answer: Answer, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> None:
        assert self._session is not None
        try:
            rows = self._session.add_all(prompts, **options)
        except NanochatError as error:
            self._events.append(_Event(answer=answer, error=error, is_over=True))
            return
        except Exception:
            # Whatever it is, it is this request's: a library of forms, or no memory for so many texts.
            _LOGGER.exception("a request could not be begun")
            failed = StepFailedError("the server failed as it began this request")
            self._events.append(_Event(answer=answer, error=failed, is_over=True))
            return
        self._owners |= {row: (answer, number) for number, row in enumerate(rows)}
        self._events.append(_Event(answer=answer, is_accepted=True))

    def _cancel(self, answer: Answer) -> None:
        self._end(answer, keep=True)
        self._events.append(_Event(answer=answer, is_over=True))

    def _end(self, answer: Answer, *, keep: bool) -> None:
        assert self._session is not None
        for row in [row for row, (owner, _) in self._owners.items() if owner is answer]:
            del self._owners[row]
            # It may have ended in a step that failed, and only its last piece has not come.
            if not self._session.holds(row):
                continue
            try:
                self._session.cancel(row, keep=keep)
            except Exception:
                # The session has it no more, and the others go on.
                _LOGGER.exception("a text could not be ended as it should")

    def _hand_over(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._tell_loop(self._tell, events)

    def _tell_loop(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the loop call a function, unless it has ended, since nobody waited for this thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    # And this in the loop.

    def _tell(self, events: Sequence[_Event]) -> None:
        for event in events:
            answer = event.answer
            self.num_texts -= answer.take(event)
            if answer.begun is None and answer.num_tokens:
                answer.begun = time.monotonic()
                if self._watcher is not None:
                    self._watcher.began(answer)
            if not answer.num_left and answer in self.open:
                self.open.remove(answer)
                if self._watcher is not None:
                    self._watcher.ended(answer)

    def _end_all(self, error: NanochatError, has_died: bool) -> None:
        """End what nobody will do any more, whether the thread has taken it up or not."""
        self._has_ended = True
        self._tell([_Event(answer=answer, error=error, is_over=True) for answer in self.open])
        for future in list(self._calls):
            if not future.done():
                future.set_exception(error)
        if has_died and self._died is not None:
            self._died()
