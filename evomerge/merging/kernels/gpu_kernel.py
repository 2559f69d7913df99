"""The kernel of GPUs, in Triton: one function for all forms, dtypes and kinds of rows, which are constants to it.

In: the arrays of `table.Places` on the device, and the pieces that programs take. Out: the sites, overwritten. What it
computes is what `plain.py` computes on a CPU, in the same order and with the same roundings:

- each product is rounded before it is added (it must be launched without fusion), row by row, and sums of 16 rows are
  added up; divisions are rounded to nearest;
- an election keeps the sums of the positive and of the negative elements, and takes the one whose sign won;
- bfloat16 is read and written by its bits, since Triton's interpreter cuts them off instead of rounding.

A row is a number: its kind in two bits, the dtype of its values in two, and one for a mask (`gpu.py` makes it).
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false
# Triton is not everywhere, and it gives constants and tensors their types itself
# ruff: noqa: SIM108, SIM109 - Triton takes a part of Python
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from evomerge.merging.kernels import exact, form, table

PARTIAL = tl.constexpr(exact.PARTIAL)
HEAD = tl.constexpr(table.HEAD)
COLUMNS = tl.constexpr(len(table.COLUMNS))
CANCELLED = tl.constexpr(form.CANCELLED)
FLOAT32, BFLOAT16, FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
DENSE, EXPERT, INT8, INT4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


def launch(programs: int, *arrays: Tensor, **constants: float | str | bool) -> None:
    """Start the kernel.

    Args:
        programs: how many there are.
        arrays: its arguments up to `flaws`.
        constants: the others.
    """
    merge[(programs,)](*arrays, **constants, enable_fp_fusion=False)


@triton.jit
def merge(
    places,
    floats,
    whole,
    spans,
    pieces,
    flaws,
    KEEP: tl.constexpr,
    JOIN: tl.constexpr,
    DIVIDE: tl.constexpr,
    SCALE: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    BASE: tl.constexpr,
    LIVE: tl.constexpr,
    ROUNDED: tl.constexpr,
    FULL: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge a piece of a site.

    Args:
        places: int64 (S, HEAD + R columns).
        floats: float32 (S, R, 4).
        whole: int32 (S, R, 4), the bits of uint32.
        spans: float32 (S, 2).
        pieces: int64 (P, 3).
        flaws: int32 (1,), to which the number of refused quotients is added.
        KEEP: of the form.
        JOIN: of the form.
        DIVIDE: of the form.
        SCALE: of the form.
        R: the number of rows.
        ROWS: what is kept of each, eight bits a row.
        BASE: the dtype of θ₀.
        LIVE: that of the model.
        ROUNDED: that to which results are rounded first.
        FULL: whether all pieces have STEPS · BLOCK elements that begin at multiples of 16 bytes.
        STEPS: blocks of a piece, at most.
        BLOCK: elements that are merged at once.
    """
    ELECTS: tl.constexpr = JOIN == "elect" or JOIN == "count"
    piece = pieces + tl.program_id(0).to(tl.int64) * 3
    s = tl.load(piece)
    start, stop = tl.multiple_of(tl.load(piece + 1), 1024), tl.load(piece + 2)
    place = places + s * (HEAD + COLUMNS * R)
    if tl.load(place + 2) == 0:
        for step in range(STEPS if FULL else tl.cdiv(stop - start, BLOCK)):
            at = start + step * BLOCK + tl.arange(0, BLOCK)
            inside = at < stop
            b = _values(place + 1, at, inside, BASE, FULL)
            for k in tl.static_range(R):
                row = place + HEAD + COLUMNS * k
                number, word = floats + (s * R + k) * 4, whole + (s * R + k) * 4
                weight = tl.load(number)
                x = _element(row, at, inside, b, JOIN, (ROWS >> (8 * k)) & 255, FULL)
                v = _kept(x, place, row, number, word, at, inside, KEEP, FULL) * weight
                if ELECTS:
                    vote = v
                    if JOIN == "count":
                        vote = tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, 0.0))
                    up_v, down_v = tl.where(v > 0, v, 0.0), tl.where(v < 0, v, 0.0)
                    w_up_v, w_down_v = tl.where(v > 0, weight, 0.0), tl.where(v < 0, weight, 0.0)
                    a_up_v, a_down_v = tl.abs(w_up_v), tl.abs(w_down_v)
                else:
                    vote = v
                if tl.constexpr(k) % PARTIAL == 0:  # a new partial sum
                    if JOIN == "blend" and k == 0:
                        t = b * tl.load(spans + s * 2) + vote
                    else:
                        t = vote
                    if ELECTS:
                        up, down, w_up, w_down, a_up, a_down = up_v, down_v, w_up_v, w_down_v, a_up_v, a_down_v
                else:
                    t = t + vote
                    if ELECTS:
                        up, down, w_up, w_down = up + up_v, down + down_v, w_up + w_up_v, w_down + w_down_v
                        a_up, a_down = a_up + a_up_v, a_down + a_down_v
                if R > PARTIAL and (tl.constexpr(k + 1) % PARTIAL == 0 or k == R - 1):
                    if k < PARTIAL:
                        all_t = t
                        if ELECTS:
                            all_up, all_down, all_w_up, all_w_down = up, down, w_up, w_down
                            all_a_up, all_a_down = a_up, a_down
                    else:
                        all_t = all_t + t
                        if ELECTS:
                            all_up, all_down = all_up + up, all_down + down
                            all_w_up, all_w_down = all_w_up + w_up, all_w_down + w_down
                            all_a_up, all_a_down = all_a_up + a_up, all_a_down + a_down
            if R > PARTIAL:
                t = all_t
                if ELECTS:
                    up, down, w_up, w_down, a_up, a_down = all_up, all_down, all_w_up, all_w_down, all_a_up, all_a_down
            if ELECTS:
                plus = t >= 0
                merged = tl.where(plus, up, down)
                if DIVIDE:
                    agreed, size = tl.where(plus, w_up, w_down), tl.where(plus, a_up, a_down)
                    refused = inside & (tl.abs(agreed) < CANCELLED * size)
                    tl.atomic_add(flaws, tl.sum(refused.to(tl.int32), axis=0))
                    merged = tl.div_rn(merged, tl.where(agreed != 0, agreed, 1.0))
            else:
                merged = t
                if DIVIDE:
                    merged = tl.div_rn(merged, tl.load(spans + s * 2 + 1))
            if SCALE != 1:
                merged = merged * SCALE
            if JOIN != "blend":
                merged = b + merged
            _store(place, at, inside, merged, LIVE, ROUNDED, FULL)


@triton.jit
def _values(column, at, inside, DTYPE: tl.constexpr, FULL: tl.constexpr):
    """Return elements in float32 of the tensor whose address stands in a column."""
    if DTYPE == FLOAT32:
        x = _read(column, at, inside, tl.float32, FULL)
    elif DTYPE == BFLOAT16:
        x = _from_bfloat16(_read(column, at, inside, tl.uint16, FULL))
    else:
        x = _read(column, at, inside, tl.float16, FULL).to(tl.float32)
    return x


@triton.jit
def _read(column, at, inside, TYPE: tl.constexpr, FULL: tl.constexpr):
    """Return elements of the tensor whose address stands in a column; 0 outside."""
    address = tl.load(column)
    if FULL:
        x = tl.load(tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + at)
    else:
        x = tl.load(address.to(tl.pointer_type(TYPE)) + at, mask=inside, other=0)
    return x


@triton.jit
def _from_bfloat16(bits):
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _to_bfloat16(x):
    """Return the bits of the nearest bfloat16, half to even."""
    bits = x.to(tl.uint32, bitcast=True)
    even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, even, 0x7FC0).to(tl.uint16)


@triton.jit
def _element(row, at, inside, b, JOIN: tl.constexpr, ROW: tl.constexpr, FULL: tl.constexpr):
    """Return the elements of a row: of its task vector, or of its model for a blend."""
    KIND: tl.constexpr = ROW & 3
    MASKED: tl.constexpr = (ROW >> 4) & 1
    if KIND == INT8 or KIND == INT4:
        step = _read(row + 1, at // 64, inside, tl.float32, False)
        zero = _read(row + 2, at // 64, inside, tl.uint8, False).to(tl.float32)
        if KIND == INT8:
            code = _read(row, at, inside, tl.uint8, FULL)
        else:  # element j of a group in the low half of byte j, and element j + 32 in the high one
            code = _read(row, at // 64 * 32 + at % 32, inside, tl.uint8, False).to(tl.int32)
            code = (code >> (at % 64 // 32 * 4).to(tl.int32)) & 15
        x = (code.to(tl.float32) - zero) * step
    else:
        x = _values(row, at, inside, (ROW >> 2) & 3, FULL)
        if KIND == EXPERT and JOIN != "blend":
            x = x - b
    if MASKED:
        bits = _read(row + 3, at // 32, inside, tl.uint32, False)
        x = tl.where(((bits >> (at % 32).to(tl.uint32)) & 1) != 0, x, 0.0)
    if JOIN == "blend" and (KIND != EXPERT or MASKED):
        x = b + x
    return x


@triton.jit
def _kept(x, place, row, number, word, at, inside, KEEP: tl.constexpr, FULL: tl.constexpr):
    """Return the elements that take part, rescaled; 0 elsewhere."""
    if KEEP == "largest" or KEEP == "between":
        kept = _above(x, at, word)
        if KEEP == "between":
            kept = kept & (_above(x, at, word + 2) == 0)
        x = tl.where(kept, x, 0.0)
    if KEEP == "drawn" or KEEP == "ranked":
        element = (tl.load(place + 3) + at).to(tl.uint32)
        one, other = tl.load(word).to(tl.uint32, bitcast=True), tl.load(word + 1).to(tl.uint32, bitcast=True)
        u = (_mixed(_mixed(element ^ one) + other) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2⁻²⁴
        chance, second = tl.load(number + 1), tl.load(number + 2)
        if KEEP == "drawn":
            x = tl.where(u < chance, x * second, 0.0)
        else:
            rank = _read(row + 4, at, inside, tl.uint16, FULL).to(tl.float32)
            chances = chance + rank * second
            divided = tl.where(tl.load(number + 3) != 0, tl.div_rn(x, chances), x)
            x = tl.where(u < chances, divided, 0.0)
    return x


@triton.jit
def _above(x, at, word):
    """Whether elements are above a cut: by the bits of their magnitudes, of equal ones those before its place."""
    limit, stop = tl.load(word).to(tl.uint32, bitcast=True), tl.load(word + 1).to(tl.uint32, bitcast=True)
    bits = x.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    return (bits > limit) | ((bits == limit) & (at.to(tl.uint32) < stop))


@triton.jit
def _mixed(word):
    """Return the hash of `task_vectors/draws.py`, of 32 bits."""
    word = word ^ (word >> 16)
    word = word * 0x21F0AAAD
    word = word ^ (word >> 15)
    word = word * 0xD35A2D97
    return word ^ (word >> 15)


@triton.jit
def _store(place, at, inside, x, LIVE: tl.constexpr, ROUNDED: tl.constexpr, FULL: tl.constexpr):
    """Write the result, rounded to one dtype and then to that of the model."""
    if LIVE != ROUNDED:
        if ROUNDED == BFLOAT16:
            x = _from_bfloat16(_to_bfloat16(x))
        elif ROUNDED == FLOAT16:
            x = x.to(tl.float16).to(tl.float32)
    if LIVE == FLOAT32:
        _write(place, at, inside, x, tl.float32, FULL)
    elif LIVE == BFLOAT16:
        _write(place, at, inside, _to_bfloat16(x), tl.uint16, FULL)
    else:
        _write(place, at, inside, x.to(tl.float16), tl.float16, FULL)


@triton.jit
def _write(column, at, inside, x, TYPE: tl.constexpr, FULL: tl.constexpr):
    """Write elements of the tensor whose address stands in a column."""
    address = tl.load(column)
    if FULL:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + at, x)
    else:
        tl.store(address.to(tl.pointer_type(TYPE)) + at, x, mask=inside)
