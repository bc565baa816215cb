"""This file holds the keys of a server: who may ask, by what name, and how often."""

import hashlib
import hmac
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import InputError

__all__ = ["Key", "Keys"]

_MINUTE = 60.0
_MOST_DIGITS = 9


@dataclass(eq=False, kw_only=True)
class Key:
    """One key, of which only the digest is kept.

    `requests` and `rows` are the most of a minute and at the same time; 0 is any number.
    """

    name: str
    digest: bytes
    requests: int = 0
    rows: int = 0
    # When it asked in the last minute, and the texts that are being written for it.
    asked: deque[float] = field(default_factory=deque)
    num_texts: int = 0

    def wait_seconds(self) -> float:
        """Seconds until it may ask again; 0 if it may now, which then counts."""
        now = time.monotonic()
        while self.asked and now - self.asked[0] >= _MINUTE:
            self.asked.popleft()
        if self.requests and len(self.asked) >= self.requests:
            return _MINUTE - (now - self.asked[0])
        self.asked.append(now)
        return 0.0


class Keys:
    """The keys of a file: on each line a key, or a name and a key, and perhaps limits.

    ::

        # name  key             most requests a minute, most texts at once
        alice   sk-4f1c...      requests=60 rows=4
        sk-99ab...

    A comment is a line of its own.
    """

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read a file of keys.

        Raises
        ------
        InputError
            If it cannot be read, or a line is none.
        """
        try:
            # Editors may put a mark before the first line, which would be a part of it.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}: pass a text file with one key a line") from error
        found: dict[bytes, tuple[int, Key]] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key = _key(line.split(), f"{path}, line {number}")
            if key.digest in found:
                raise InputError(
                    f"{path}, line {number}: this key is that of line {found[key.digest][0]}: give each line its own"
                )
            found[key.digest] = number, key
        if not found:
            raise InputError(f"{path} holds no key: write one on a line")
        return cls([key for _, key in found.values()])

    def find(self, given: str) -> Key | None:
        """The key that a client gives, if it is one; takes equally long for any."""
        digest, found = _digest(given), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _key(words: list[str], where: str) -> Key:
    if any(word.startswith("#") for word in words):
        # Which word the key is would be a guess, and names are logged.
        raise InputError(f"{where}: put what begins with # on a line of its own, above the key")
    limits = {"requests": 0, "rows": 0}
    while words and "=" in words[-1] and words[-1].partition("=")[0] in limits:
        name, _, number = words.pop().partition("=")
        # Longer numbers than 4300 digits are none to Python.
        if not number.isdecimal() or len(number) > _MOST_DIGITS:
            raise InputError(f"{where}: {name}={number!r:.20} is no number")
        limits[name] = int(number)
    if len(words) not in (1, 2):
        raise InputError(
            f"{where}: write a key, or a name and a key, and perhaps requests=N rows=N"
        )
    digest = _digest(words[-1])
    name = words[0] if len(words) == 2 else "key-" + digest.hex()[:6]
    return Key(name=name, digest=digest, requests=limits["requests"], rows=limits["rows"])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
