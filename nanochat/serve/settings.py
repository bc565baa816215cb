"""This file holds the settings of a server: each is a flag, a key of a TOML file and a variable of the environment."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from nanochat.errors import ConfigError, InputError

__all__ = ["LOOPBACK", "SIZES", "Settings", "is_loopback", "read_size"]


# Settings that are numbers of bytes.
SIZES = ("kv_memory", "max_body")
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server listens, whom it serves, and how much it takes on.

    Flags, keys and variables have the names of the fields; the flags' help is written beside them.
    """

    host: Annotated[str, "Where to listen; 0.0.0.0 is every network, and needs a key."] = (
        "127.0.0.1"
    )
    port: Annotated[int, "The port; 0 takes any that is free."] = 8000
    workers: Annotated[
        int,
        "Processes, one for each NUMA node, with cores of their own and ports from --port on; bounds are of each.",
    ] = 1
    max_rows: Annotated[
        int, "Texts that are written at the same time.  [default: 32, or as many as have room]"
    ] = 0
    queue: Annotated[int, "Texts that wait for a row; more are refused with 429."] = 256
    kv_memory: Annotated[
        int,
        "Memory for keys and values, such as 4GB.  [default: as --max-rows texts need, or half of what is free]",
    ] = 0
    prefix_cache: Annotated[bool, "Let prompts begin with what earlier ones have read."] = True
    drafts: Annotated[
        bool,
        "Guess what texts say next and read several tokens at once, where that is faster; texts are the same.",
    ] = True
    draft_heads: Annotated[
        bool, "Let extra heads of the models guess, too; for models that were trained with some."
    ] = False
    deterministic: Annotated[
        bool,
        "Give each text what it gets alone on any backend: where company changes bits, one text at a time.",
    ] = False
    api_key_file: Annotated[
        Path | None, "A file with one key a line: a key, or NAME KEY requests=N rows=N."
    ] = None
    allow_origin: Annotated[
        tuple[str, ...], "A web site whose pages may ask, such as https://example.com; repeatable."
    ] = ()
    allow_host: Annotated[
        tuple[str, ...],
        "A name by which this server is called, besides localhost and --host; repeatable.",
    ] = ()
    insecure: Annotated[bool, "Serve other machines without a key."] = False
    drain_delay: Annotated[
        float, "Seconds between the signal to end and the end, for balancers to notice."
    ] = 0.0
    drain_timeout: Annotated[float, "Seconds for answers that are being written then."] = 30.0
    request_timeout: Annotated[float, "Seconds that an answer may take, waiting included."] = 600.0
    body_timeout: Annotated[float, "Seconds in which a request must have come."] = 30.0
    max_body: Annotated[int, "Most bytes of a request, such as 4MB."] = 4_000_000
    max_connections: Annotated[int, "Connections at the same time."] = 1024
    ssl_cert: Annotated[Path | None, "A certificate, for HTTPS."] = None
    ssl_key: Annotated[Path | None, "Its key."] = None
    root_path: Annotated[str, "Where a proxy has put this server, such as /llm."] = ""
    json_log: Annotated[bool, "Write a line of JSON for each request."] = False
    page: Annotated[bool, "Show a page to chat with at /."] = True

    def __post_init__(self) -> None:
        for name in ("max_body", "max_connections", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: pass 1 or more")
        for name in ("max_rows", "queue", "kv_memory", "drain_delay", "drain_timeout"):
            # In these words, since NaN is not less, either.
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: pass 0 or more")
        for name in ("request_timeout", "body_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: pass more than 0 seconds")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port}: pass 0 to 65535; 0 takes any that is free")
        if (self.ssl_cert is None) != (self.ssl_key is None):
            raise ConfigError("ssl_cert and ssl_key belong together: pass both, or none")
        for origin in self.allow_origin:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ConfigError(
                    f"allow_origin={origin}: pass a scheme and a host, such as https://example.com"
                )
        for name in self.allow_host:
            if not _is_name(name):
                raise ConfigError(
                    f"allow_host={name!r:.200}: pass a name or an address alone, without scheme, port or brackets, as "
                    "in box.example"
                )
        if self.root_path and not re.fullmatch(r"(/[^/\s?#]+)+", self.root_path):
            raise ConfigError(
                f"root_path={self.root_path!r:.200}: begin with / and end without, as in /llm"
            )
        if not is_loopback(self.host) and self.api_key_file is None and not self.insecure:
            raise ConfigError(
                f"host={self.host} can be reached by other machines, and there is no key: pass --api-key-file FILE, or "
                "--insecure if everybody who can reach it may use it"
            )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach it.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return host in LOOPBACK or host.startswith("127.")


def _is_name(host: str) -> bool:
    if ":" not in host:
        return bool(re.fullmatch(r"[\w.-]+", host, re.ASCII))
    try:
        return bool(ipaddress.IPv6Address(host))
    except ValueError:
        return False


def read_size(text: str) -> int:
    """Bytes as people write them.

    Raises
    ------
    InputError
        If it is no size.

    Examples
    --------
    >>> read_size("4GB"), read_size("0.5 kiB")
    (4000000000, 512)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _UNITS:
        raise InputError(f"{text!r:.80} is no size: pass one such as 4GB, 500MB or 2GiB")
    size = float(found[1]) * _UNITS[found[2]]
    if size >= 2**63:
        raise InputError(f"{text!r:.80} is more than any machine has: pass a size such as 4GB")
    return int(size)
