"""This file holds what `tune` finds out, and the file where it is kept beside the compiled kernels.

There is one file for each kind of processor, so that machines may share a folder. A file that was written for other
kernels, that is damaged, or that holds anything this file would not write is not used, and is written anew.
"""

import hashlib
import json
import logging
import math
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import llvmlite.binding

from nanochat.backends.host import processor
from nanochat.backends.numba.products import linear
from nanochat.backends.numba.products.activation import padded_width
from nanochat.backends.numba.products.packing import TiledLinear
from nanochat.backends.numba.products.trit_codes import TritLayout
from nanochat.backends.numba.runtime import compilation
from nanochat.backends.numba.runtime.isa import Isa, available, cpu_features
from nanochat.backends.numba.runtime.lanes import WORDS
from nanochat.errors import FormatError, SaveError
from nanochat.files import atomic_write, exists, parse_json, read_bytes

__all__ = ["CLASSES", "Choice", "Finding", "Key", "Kind", "Shape", "clear", "keep", "load"]
__all__ += ["kernels", "path", "place", "record"]

_LOG = logging.getLogger(__name__)

# Numbers of tokens that are told apart: each stands for all up to the next.
CLASSES = (1, 2, 3, 4, 16, 64)

_NAME = "choices"
# A record is about 250 bytes; there may be some thousands.
_LARGEST_FILE = 4 * 2**20
_MOST_RECORDS = 4096


# Ternary codes in two bits each, or five in a byte, or 8-bit codes.
Kind = Literal["ternary", "int8"] | TritLayout


class Shape(NamedTuple):
    """What a product's speed depends on, of its matrix; `block` columns of activations share a scale."""

    kind: Kind
    rows: int
    columns: int
    block: int

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        numbers = self.rows * self.columns
        match self.kind:
            case "ternary":
                return numbers // 4
            case "table_trits" | "power_trits":
                return numbers * WORDS // 64
        return numbers

    @classmethod
    def of(cls, matrix: TiledLinear) -> "Shape":
        """The shape of a matrix as the tuner sees it."""
        packed = matrix.codes.shape[2] * 16 == padded_width(matrix.activation_block)
        kind: Kind = "ternary" if packed else "int8"
        if matrix.layout != "two_bits":
            kind = matrix.layout
        return cls(kind, matrix.rows, matrix.columns, matrix.activation_block)


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a product was measured for: its matrix, tokens and threads."""

    shape: Shape
    # One of `CLASSES`.
    tokens: int
    # The instruction sets among which was chosen.
    isas: tuple[Isa, ...]
    threads: int
    # Logarithm of the bytes of all matrices of the model, to base 2 and rounded up: what fits a cache is faster.
    size: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to compute a product: see `linear.integer_product`; `alone` leaves all of it to the calling thread."""

    isa: Isa
    variant: int
    alone: bool


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A choice, and the next best if there was another, with their speeds in billions of operations a second."""

    choice: Choice
    gops: float
    next_best: Choice | None
    next_gops: float


def load() -> dict[Key, Finding]:
    """What was found on this machine with these kernels: nothing if nothing can be trusted."""
    try:
        return _kept(path())
    except FormatError as error:
        _LOG.info("%s, so products are measured anew", error)
    return {}


def keep(found: dict[Key, Finding]) -> Path | None:
    """Add to what is kept; the file, or nothing if it cannot be written.

    Of two processes that write at once, one may lose what it found and measure it again another time.
    """
    file = path()
    if file is None:
        return None
    known: dict[Key, Finding] = {}
    with suppress(FormatError):
        known = _kept(file)
    pairs = (known | found).items()
    records = [record(key, finding) for key, finding in pairs][-_MOST_RECORDS:]
    content = {"kernels": kernels(), "choices": records}
    try:
        atomic_write(file, json.dumps(content).encode())
    except SaveError as error:
        _LOG.debug("%s", error)
        return None
    return file


def clear() -> int:
    """Remove what is kept for all processors; how many files there were."""
    file = path()
    files = [] if file is None else list(file.parent.glob(f"{_NAME}.*.json"))
    for each in files:
        each.unlink(missing_ok=True)
    return len(files)


def path() -> Path | None:
    """The file for this processor, or nothing if there is no folder for compiled kernels."""
    return place(_NAME)


def place(name: str) -> Path | None:
    """The file of that name for this processor, or nothing if there is no folder for compiled kernels."""
    folder = compilation.folder(linear.plain_product)
    return None if folder is None else folder / f"{name}.{_processor()}.json"


def _processor() -> str:
    name = llvmlite.binding.get_host_cpu_name()
    words = [platform.machine(), name, processor(), *sorted(cpu_features())]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def kernels() -> str:
    """What changes when any kernel may have become another."""
    stamp = compilation.stamp() + llvmlite.__version__.encode()
    return hashlib.sha256(stamp).hexdigest()


def record(key: Key, finding: Finding) -> dict[str, object]:
    """A key and its finding, in types that JSON has."""
    shape = key.shape._asdict()
    return {**asdict(key), **asdict(finding), "shape": shape}


def _kept(file: Path | None) -> dict[Key, Finding]:
    if file is None or not exists(file):
        return {}
    content = parse_json(read_bytes(file, limit=_LARGEST_FILE), str(file))
    records = content.get("choices")
    if content.get("kernels") != kernels():
        raise FormatError(f"{file} was written for other kernels")
    if content.keys() != {"kernels", "choices"} or not isinstance(records, list):
        raise FormatError(f"{file} is not of the form that is written")
    found: dict[Key, Finding] = {}
    for each in records:
        pair = _parsed(each)
        # Nothing may be lost or added on the way.
        if pair is None or json.dumps(record(*pair)) != json.dumps(each):
            raise FormatError(f"{file} holds {each!r:.80}")
        found[pair[0]] = pair[1]
    return found


def _parsed(value: object) -> tuple[Key, Finding] | None:
    match value:
        case {
            "shape": {
                "kind": ("ternary" | "table_trits" | "power_trits" | "int8") as kind,
                "rows": int(rows),
                "columns": int(columns),
                "block": int(block),
            },
            "tokens": int(tokens),
            "isas": [*names],
            "threads": int(threads),
            "size": int(size),
            "choice": choice,
            "gops": float(gops),
            "next_best": next_best,
            "next_gops": float(next_gops),
        } if tokens in CLASSES and math.isfinite(gops) and math.isfinite(next_gops):
            isas = tuple(isa for isa in available() if isa in names)
            best, second = _choice(choice), _choice(next_best)
            if best is None or best.isa not in isas:
                return None
            shape = Shape(kind, rows, columns, block)
            key = Key(shape=shape, tokens=tokens, isas=isas, threads=threads, size=size)
            return key, Finding(choice=best, gops=gops, next_best=second, next_gops=next_gops)
    return None


def _choice(value: object) -> Choice | None:
    match value:
        # A kernel must not meet a processor that lacks its instructions.
        case {"isa": isa, "variant": int(variant), "alone": bool(alone)} if (
            isa in available() and type(variant) is int and variant in linear.VARIANTS
        ):
            return Choice(isa=isa, variant=variant, alone=alone)
    return None
