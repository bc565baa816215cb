"""This file holds the choice of how a model's ternary codes lie in memory: in two bits each, or five to a byte."""

from typing import Literal

from nanochat.backends.free_memory import free_bytes
from nanochat.backends.numba.products.trit_codes import CodeLayout, layout_for
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.backends.numba.runtime.lanes import STREAMED
from nanochat.errors import BackendError

__all__ = ["WantedLayout", "layout_of", "require_layout"]

WantedLayout = Literal["auto", "two_bits", "five_trits"]

# What a model takes beside its ternary codes: a share for scales and for what is left of pieces of memory, and bytes
# for tables, keys, values and work.
_SHARE, _BESIDE = 1.12, 2**29


def require_layout(wanted: WantedLayout, isa: Isa) -> None:
    """Refuse five codes to a byte by a `BackendError` where nothing takes them apart."""
    if wanted == "five_trits" and layout_for(isa) is None:
        raise BackendError(
            f"layout='five_trits' needs AVX2, or AVX-512 with VNNI and VBMI, and the instructions in use are {isa}: "
            "choose layout='auto' or 'two_bits'"
        )


def layout_of(wanted: WantedLayout, isa: Isa, nbytes: int) -> CodeLayout:
    """How a model is laid out whose ternary codes take so many bytes in two bits each."""
    trits = layout_for(isa) or "two_bits"
    match wanted:
        case "auto":
            is_better = trits == "table_trits" or _is_short(nbytes)
            return trits if nbytes >= STREAMED and is_better else "two_bits"
        case "five_trits":
            return trits
    return "two_bits"


def _is_short(nbytes: int) -> bool:
    """Whether memory is too short for them."""
    free = free_bytes()
    return free is not None and free < _SHARE * nbytes + _BESIDE
