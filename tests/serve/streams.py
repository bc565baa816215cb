"""This file holds streams that threads read while a test does something to those who write them."""

import threading
import time
from typing import Any

import httpx2
import openai

__all__ = ["Stream"]


class Stream:
    """A completion as it comes; greedy, and never ended by the model.

    Attributes
    ----------
    texts : list of str
        Of each choice.
    how : str
        "end", "error: ..." as the server told it, "broken: ..." if the connection was, and empty while it comes.
    ended : float
        When, by the monotonic clock.
    """

    def __init__(self, url: str, *, prompt: str = "fn", tokens: int = 1000, n: int = 1) -> None:
        self.texts = [""] * n
        self.how, self.ended, self.num_chunks = "", 0.0, 0
        self._client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        self._body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "n": n}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def begun(self) -> "Stream":
        """Itself, once something has come."""
        while not self.num_chunks and not self.how:
            time.sleep(0.005)
        return self

    def wait(self, seconds: float = 60) -> str:
        """How it ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        return self.how

    def _read(self) -> None:
        try:
            with self._client:
                for chunk in self._client.completions.create(
                    model="nanochat-tiny",
                    temperature=0,
                    stream=True,
                    extra_body={"ignore_eos": True},
                    **self._body,
                ):
                    for choice in chunk.choices:
                        self.texts[choice.index] += choice.text
                    self.num_chunks += 1
            how = "end"
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            how = f"broken: {error}"
        except openai.APIError as error:
            how = f"error: {error.message}"
        self.ended = time.monotonic()
        self.how = how
