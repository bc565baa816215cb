"""This file holds the numerics contract: how weights and activations become small integers.

Glossary, used with these meanings everywhere:

* *codes*: the small integers, int8; in {-1, 0, 1} for ternary weights, in [-127, 127] for activations and tables.
* *scales*: the factors that turn codes back into numbers.
* *block*: consecutive columns (input features) that share a scale.
* *packed*: four ternary codes to a byte, ``code + 1`` in two bits, lowest bits first; 0b11 is illegal.
* *keys and values*: vectors of attention that are remembered, rounded to 4 bits by `quantize_kv` if asked.
* *latent*: the float weights that training updates and that `quantize` rounds.

Shapes are written with R rows (output features), C columns (input features), B blocks of a row, N tokens.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import NumericError, ShapeError

__all__ = [
    "KV_BLOCK",
    "KV_LARGEST",
    "SMALLEST_SCALE",
    "block_products",
    "dequantize",
    "exact_sums",
    "latent",
    "num_blocks",
    "pack",
    "quantize",
    "quantize_activations",
    "quantize_kv",
    "quantize_table",
    "recover",
    "recover_rows",
    "require_finite",
    "require_legal",
    "unpack",
]

# The smallest normal number of float16: scales below it would lose bits in every format that stores them.
SMALLEST_SCALE = 2.0**-14

# 128 times the smallest normal float32.
_SMALLEST_ACTIVATION = np.float32(2.0**-119)

# Numbers of a key or value that share a scale in 4 bits, and the largest of their codes.
KV_BLOCK = 32
KV_LARGEST = 7

# The four codes of every byte, as the bytes of one number: one look-up instead of four shifts.
_FOUR_CODES: NDArray[np.uint32] = np.array(
    [[(byte >> 2 * i & 3) - 1 for i in range(4)] for byte in range(256)], np.int8
).view(np.uint32)[:, 0]
_LOWER_BITS = np.uint8(0b01_01_01_01)
# Bytes that are checked at once: what lies between two passes stays in the cache.
_CHECKED_BYTES = 2**17


def num_blocks(columns: int, block: int) -> int:
    """Blocks in a row."""
    if block < 1 or columns % block:
        raise ShapeError(
            f"cannot split {columns} columns into blocks of {block}: pass a block that divides {columns}, "
            "or pad the layer's input width"
        )
    return columns // block


def require_finite(values: NDArray[np.floating], name: str) -> None:
    """Refuse infinities and NaN."""
    finite = np.isfinite(values)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise NumericError(
            f"{name} holds {values[index]} at {list(index)}: every weight must be finite; "
            "restore an earlier checkpoint or lower the learning rate"
        )


def quantize(
    weight: NDArray[np.float32], *, block: int, name: str = "weight"
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round each weight to the nearest of -1, 0, +1 times its block's mean magnitude.

    Parameters
    ----------
    weight : float32 array, shape (R, C)
        Row ``r`` produces output feature ``r``.
    block : int
        Columns that share a scale; divides C.

    Returns
    -------
    codes : int8 array, shape (R, C)
        ``clip(rint(w / scale), -1, 1)``, half to even.
    scales : float16 array, shape (R, C / block)
        ``float16(float32(max(mean |w|, 2**-14)))``; the mean is a float64 sum, so that the order of its additions,
        which differs between frameworks, does not show.

    Raises
    ------
    NumericError
        If a weight is not finite, or its block's mean magnitude exceeds float16.
    ShapeError
        If `block` does not divide C.

    References
    ----------
    .. [1] S. Ma et al., "The Era of 1-bit LLMs", 2024, section 2. arXiv:2402.17764

    Examples
    --------
    >>> codes, scales = quantize(np.array([[0.9, -0.1, 0.0, -1.0]], np.float32), block=4)
    >>> codes.tolist(), scales.tolist()
    ([[1, 0, 0, -1]], [[0.5]])
    """
    require_finite(weight, name)
    rows, columns = weight.shape
    blocks = weight.reshape(rows, num_blocks(columns, block), block)
    magnitude = np.abs(blocks).mean(axis=2, dtype=np.float64).astype(np.float32)
    if magnitude.size and magnitude.max() > np.finfo(np.float16).max:
        raise NumericError(
            f"{name} has a block of mean magnitude {magnitude.max():.3g}: scales are float16 and at most 65504; "
            "rescale the tensor"
        )
    scales = np.maximum(magnitude, np.float32(SMALLEST_SCALE)).astype(np.float16)
    codes = np.clip(np.rint(blocks / scales.astype(np.float32)[:, :, None]), -1, 1).astype(np.int8)
    return codes.reshape(rows, columns), scales


def dequantize(
    codes: NDArray[np.int8], scales: NDArray[np.float16 | np.float32]
) -> NDArray[np.float32]:
    """Codes times the scale of their block, float32, shape (R, C)."""
    columns, count = codes.shape[1], scales.shape[1]
    if columns % count:
        raise ShapeError(
            f"{count} scales a row cannot share {columns} columns evenly: codes and scales are of two matrices"
        )
    return codes.astype(np.float32) * np.repeat(scales.astype(np.float32), columns // count, axis=1)


def latent(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Weights that `quantize` rounds to just these codes and scales.

    Codes times scales would not be: their mean magnitude is smaller than the scale by the share of codes that are not
    zero, so each round trip would shrink all scales.

    Parameters
    ----------
    codes : int8 array, shape (R, C)
    scales : float16 array, shape (R, C / block)
        That of a block of zeros is lost: it becomes the smallest.

    Examples
    --------
    >>> codes, scales = np.array([[1, 0, 0, -1]], np.int8), np.array([[0.5]], np.float16)
    >>> latent(codes, scales).tolist()
    [[1.0, 0.0, 0.0, -1.0]]
    """
    rows, count = scales.shape
    blocks = codes.reshape(rows, count, -1)
    share: NDArray[np.float32] = (blocks != 0).mean(axis=2, dtype=np.float32)
    share[share == 0] = 1
    return dequantize(codes, scales.astype(np.float32) / share)


def recover(
    values: NDArray[np.floating], *, block: int, name: str = "weight"
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Undo `dequantize` exactly: nothing is rounded, and what is not ternary is refused.

    Parameters
    ----------
    values : float array, shape (R, C)
        In each block zeros and one magnitude, which float16 holds.
    block : int
        Columns that share a scale; divides C.

    Returns
    -------
    codes : int8 array, shape (R, C)
        The signs.
    scales : float16 array, shape (R, C / block)
        The magnitudes; ``2**-14`` for a block of zeros, whose scale no dense format keeps.

    Raises
    ------
    NumericError
        If a value is not finite, a block has two magnitudes, or float16 does not hold one.
    ShapeError
        If `block` does not divide C.

    Examples
    --------
    >>> codes, scales = recover(np.array([[0.5, -0.5, 0.0, 0.0]], np.float32), block=2)
    >>> codes.tolist(), scales.tolist()
    ([[1, -1, 0, 0]], [[0.5, 6.103515625e-05]])
    """
    require_finite(values, name)
    rows, columns = values.shape
    blocks = values.reshape(rows, num_blocks(columns, block), block)
    largest = np.abs(blocks).max(axis=2)
    other = (blocks != 0) & (np.abs(blocks) != largest[:, :, None])
    if other.any():
        row, number, column = (int(i) for i in np.argwhere(other)[0])
        raise NumericError(
            f"{name} holds {blocks[row, number, column]} and {largest[row, number]} in columns {number * block} to "
            f"{(number + 1) * block - 1} of row {row}: a ternary block has zeros and one magnitude; pass the block "
            "that the weights were rounded in, or round them with quantize"
        )
    with np.errstate(over="ignore"):
        scales = largest.astype(np.float16)
    inexact = scales != largest
    if inexact.any():
        row, number = (int(i) for i in np.argwhere(inexact)[0])
        raise NumericError(
            f"{name} has the scale {largest[row, number]!s} in row {row}, which float16 does not hold: scales are "
            "float16; round the weights with quantize"
        )
    scales[largest == 0] = SMALLEST_SCALE
    return np.sign(blocks).astype(np.int8).reshape(rows, columns), scales


def quantize_table(
    table: NDArray[np.float32], *, block: int, name: str = "table"
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round each block of an embedding or head, most often a row, to 8 bits.

    Returns
    -------
    codes : int8 array, shape (R, C)
        ``clip(rint(w / scale), -127, 127)``, half to even.
    scales : float16 array, shape (R, C / block)
        ``float16(max(max |w| / 127, 2**-14))``.
    """
    require_finite(table, name)
    blocks = table.reshape(len(table), num_blocks(table.shape[1], block), block)
    largest = np.abs(blocks).max(axis=2) / np.float32(127)
    if largest.size and largest.max() > np.finfo(np.float16).max:
        raise NumericError(
            f"{name} has a block of magnitude {largest.max() * 127:.3g}: scales are float16; rescale the table"
        )
    scales = np.maximum(largest, np.float32(SMALLEST_SCALE)).astype(np.float16)
    codes = np.clip(np.rint(blocks / scales.astype(np.float32)[:, :, None]), -127, 127)
    return codes.astype(np.int8).reshape(table.shape), scales


def recover_rows(
    table: NDArray[np.float32], *, name: str = "table"
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Undo codes times scales of an 8-bit table exactly, for tables that `quantize_table` made of whole rows.

    Returns
    -------
    codes : int8 array, shape (R, C)
    scales : float16 array, shape (R, 1)
        Of all that fit a row the smallest from ``2**-14`` on, with which its largest code is 127 if it can be.

    Examples
    --------
    >>> codes, scales = recover_rows(np.array([[0.25, 31.75, -0.5]], np.float32))
    >>> codes.tolist(), scales.tolist()
    ([[1, 127, -2]], [[0.25]])
    """
    require_finite(table, name)
    codes = np.zeros(table.shape, np.int8)
    scales = np.full(len(table), SMALLEST_SCALE, np.float16)
    largest = np.abs(table).max(axis=1)
    left = np.flatnonzero(largest)
    for code in range(127, 0, -1):
        with np.errstate(over="ignore"):
            found = (largest[left] / np.float32(code)).astype(np.float16)
        # Exact in float32: 7 bits times 11.
        fits = (found >= SMALLEST_SCALE) & (
            found.astype(np.float32) * np.float32(code) == largest[left]
        )
        rows, factors = left[fits], found[fits].astype(np.float32)[:, None]
        whole = np.rint(table[rows] / factors)
        same = (whole * factors == table[rows]).all(axis=1)
        codes[rows[same]], scales[rows[same]] = whole[same], found[fits][same]
        left = np.setdiff1d(left, rows[same], assume_unique=True)
    if left.size:
        raise NumericError(
            f"{name} has row {left[0]}, which is not whole codes of at most 127 times one number of float16: "
            "round the table with quantize_table"
        )
    return codes, scales[:, None]


def quantize_activations(
    x: NDArray[np.float32], *, block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each block of a token's features to 8 bits.

    Parameters
    ----------
    x : float32 array, shape (N, C)
    block : int
        Columns that share a scale; divides C.

    Returns
    -------
    codes : int8 array, shape (N, C)
        ``clip(rint(x * (127 / max |x|)), -127, 127)``, half to even; 0 in a block of zeros.
    scales : float32 array, shape (N, C / block)
        ``max |x| / 127``; 0 in a block of zeros.

    Notes
    -----
    A block whose largest magnitude is below 2**-119 counts as zeros: its scale would be subnormal, and near zero
    ``127 / max |x|`` is infinite. A block with an infinity or NaN has a scale that is not finite, and codes without
    meaning.
    """
    tokens, columns = x.shape
    blocks = x.reshape(tokens, num_blocks(columns, block), block)
    largest = np.abs(blocks).max(axis=2)
    largest[largest < _SMALLEST_ACTIVATION] = 0
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.clip(np.rint(blocks * inverse[:, :, None]), -127, 127).astype(np.int8)
    return codes.reshape(tokens, columns), largest / np.float32(127)


def quantize_kv(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round keys or values to 4 bits, in blocks of `KV_BLOCK` numbers of a vector, of which the last may be shorter.

    Parameters
    ----------
    x : float32 array, shape (N, K)

    Returns
    -------
    codes : int8 array, shape (N, K)
        ``rint(x * (1 / scale))``, half to even, in [-7, 7]; 0 in a block of zeros.
    scales : float32 array, shape (N, ceil(K / 32))
        ``max |x| / 7``, rounded to bfloat16, half to even; 0 in a block of zeros.

    Notes
    -----
    A scale of bfloat16 takes the two bytes of one of float16, and none is too large or too small for it. Its 8 bits are
    enough, since codes are made with the rounded scale: exact ones would lessen the error by less than a thousandth. A
    code times a scale is exact in float32.

    A block whose largest magnitude is below 2**-119 counts as zeros, as in `quantize_activations`. A block with an
    infinity or NaN has the scale NaN, and zeros as codes.

    Examples
    --------
    >>> codes, scales = quantize_kv(np.array([[0.5, -3.5, 0.75, 1.25]], np.float32))
    >>> codes.tolist(), scales.tolist()
    ([[1, -7, 2, 2]], [[0.5]])
    """
    rows, columns = x.shape
    blocks = -(-columns // KV_BLOCK)
    padded = np.zeros((rows, blocks * KV_BLOCK), np.float32)
    padded[:, :columns] = x
    padded = padded.reshape(rows, blocks, KV_BLOCK)
    largest = np.abs(padded).max(axis=2)
    bad = ~np.isfinite(largest)
    padded[bad] = 0
    largest[bad | (largest < _SMALLEST_ACTIVATION)] = 0
    scales = _bfloat16(largest / np.float32(KV_LARGEST))
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    # No clip: a scale is rounded down by 2**-8 of it at most, which makes 7.03 of 7.
    codes = np.rint(padded * inverse[:, :, None]).astype(np.int8)
    scales[bad] = np.nan
    return codes.reshape(rows, -1)[:, :columns], scales


def _bfloat16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite numbers, rounded to the upper half of their bits, half to even."""
    bits = x.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded: NDArray[np.uint32] = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def exact_sums(block: int) -> type[np.floating]:
    """The fastest type that holds every sum of a block of products of 8-bit codes exactly.

    Products of int32 are far slower than those of float64, which holds them all, and those of float32 twice as fast.
    """
    return np.float32 if 127 * 127 * block <= 2**24 else np.float64


def block_products(
    x_codes: NDArray[np.int8], codes: NDArray[np.int8], *, block: int
) -> NDArray[np.int32]:
    """Exact integer sums of one linear, before any scale.

    Parameters
    ----------
    x_codes : int8 array, shape (N, C)
    codes : int8 array, shape (R, C)
    block : int
        Columns of one sum; an activation block.

    Returns
    -------
    int32 array, shape (C / block, N, R)
        Every backend that forms these sums forms exactly these.
    """
    tokens, columns = x_codes.shape
    count = num_blocks(columns, block)
    exact = exact_sums(block)
    left = x_codes.reshape(tokens, count, block).transpose(1, 0, 2).astype(exact)
    right = codes.reshape(-1, count, block).transpose(1, 2, 0).astype(exact)
    return (left @ right).astype(np.int32)


def pack(codes: NDArray[np.int8], *, name: str = "codes") -> NDArray[np.uint8]:
    """Four ternary codes to a byte, lowest bits first; a row's tail is filled with zero codes.

    Parameters
    ----------
    codes : int8 array, shape (R, C), values in {-1, 0, 1}

    Returns
    -------
    uint8 array, shape (R, ceil(C / 4))

    Raises
    ------
    NumericError
        If a code is not -1, 0 or 1.

    Examples
    --------
    >>> pack(np.array([[1, 0, -1, 1]], np.int8)).tolist() == [[0b10_00_01_10]]
    True
    """
    if codes.size and (codes.min() < -1 or codes.max() > 1):
        bad = codes[(codes < -1) | (codes > 1)][0]
        raise NumericError(f"{name} holds the code {bad}: ternary codes are -1, 0 and 1")
    rows, columns = codes.shape
    size = -(-columns // 4)
    padded = np.zeros((rows, size * 4), np.int8)
    padded[:, :columns] = codes
    pairs = (padded + 1).astype(np.uint8).reshape(rows, size, 4)
    packed = pairs[:, :, 0] | pairs[:, :, 1] << 2 | pairs[:, :, 2] << 4 | pairs[:, :, 3] << 6
    return packed.astype(np.uint8)


def unpack(packed: NDArray[np.uint8], *, columns: int, name: str = "packed") -> NDArray[np.int8]:
    """Undo `pack`.

    Returns
    -------
    int8 array, shape (R, columns)

    Raises
    ------
    NumericError
        If a pair of bits is 0b11.
    ShapeError
        If a row does not have ``ceil(columns / 4)`` bytes.
    """
    rows, size = packed.shape
    if size != -(-columns // 4):
        raise ShapeError(
            f"{name} has {size} bytes a row but {columns} columns need {-(-columns // 4)}: the file is truncated "
            "or its configuration is another model's"
        )
    require_legal(packed, name)
    codes = np.take(_FOUR_CODES, packed).view(np.int8).reshape(rows, size * 4)
    return np.ascontiguousarray(codes[:, :columns])


def require_legal(packed: NDArray[np.uint8], name: str) -> None:
    """Refuse bytes that hold the pair 0b11."""
    flat = packed.reshape(-1)
    for start in range(0, flat.size, _CHECKED_BYTES):
        part = flat[start : start + _CHECKED_BYTES]
        # The lower bit of a pair that is 0b11.
        illegal = part & part >> np.uint8(1) & _LOWER_BITS
        if not illegal.any():
            continue
        place = start + int(np.flatnonzero(illegal)[0])
        index = tuple(int(i) for i in np.unravel_index(place, packed.shape))
        raise NumericError(
            f"{name} holds the byte {int(packed[index]):#04x} at {list(index)}, with the pair 0b11 that stands for no "
            "code: the file is corrupt, fetch it again"
        )
