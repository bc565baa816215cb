"""This file holds the choice of how a model's ternary codes lie in memory: in two bits each, or five to a byte."""

from typing import Literal

from nanochat.backends.numba.products.trit_codes import CodeLayout, layout_for
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.errors import BackendError

__all__ = ["WantedLayout", "layout_of", "require_layout"]

WantedLayout = Literal["auto", "two_bits", "five_trits"]

# Bytes of a model's ternary codes, in two bits, that fit no cache of most machines: from there on, table trits are read
# sooner than two bits: on two Zen 4 cores a token took 0.84 to 0.88 times as long, on one 0.89 to 0.95 times. From the
# cache it took 1.3 times as long. Power trits, which take twice the arithmetic of two bits, are read later.
_STREAMED = 64 * 2**20


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
            return trits if trits == "table_trits" and nbytes >= _STREAMED else "two_bits"
        case "five_trits":
            return trits
    return "two_bits"
