"""The text of a compiled kernel: one loop over the elements of a span that reads base and rows and writes the result.

In: a `Variant`: a form, the dtypes of base and model, and the kind of each row. Out: Python for numba. All rows are
written out, so that an element is read once, stays in registers, and is written once. What the loop computes is what
`plain.py` computes, in the same order and with the same roundings:

- each product is rounded before it is added (numba fuses none), row by row, and sums of 16 rows are added up;
- an election keeps the sums of the positive and of the negative elements, and takes the one whose sign won.

More than `TOGETHER` rows are read in several loops over a tile, whose sums wait in the processor's cache. Kinds that
are packed (quantised, masked) are read in segments of 32 elements, in which everything but the element is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.merging.kernels.form import CANCELLED, Form
from evomerge.merging.kernels.table import COLUMNS, HEAD, Variant

TOGETHER = 8
"""Rows that one loop reads: more would not find registers."""
PARTIAL = 16
"""Rows after which a new partial sum begins, as in `torch.sum`."""
SEGMENT = 32
"""Elements of a segment: half a group of the quantised kinds, and one word of a mask."""
TILE = 2048
"""Elements whose sums wait between loops."""
HIGH = 1 << 16
"""Elements of a parameter whose numbers have the same upper half."""

_BITS = ("as_bits", "from_bfloat16", "from_float16", "pointer", "to_bfloat16", "to_float16")
_WORDS = {"float32": "np.float32", "bfloat16": "np.uint16", "float16": "np.uint16"}
_READ = {"float32": "{}", "bfloat16": "from_bfloat16({})", "float16": "from_float16({})"}
_ROUND = {"float32": "{}", "bfloat16": "to_bfloat16({})", "float16": "to_float16({})"}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def source(variant: Variant) -> str:
    """Return the module of a kernel; its function `merge` says how many quotients were refused."""
    return "\n".join(_module(variant)) + "\n"


def _module(variant: Variant) -> Iterator[str]:
    yield "import numba"
    yield "import numpy as np"
    yield "from numba import carray"
    yield f"from evomerge.merging.kernels.bits import {', '.join(_BITS)}"
    yield "from evomerge.merging.kernels.draw import LOW, draw, limit, mixed, with_high"
    yield ""
    arguments = "int64[:,::1], float32[:,:,::1], uint32[:,:,::1], float32[:,::1], int64[:,::1], int64, int64"
    yield f'@numba.njit("int64({arguments})", nogil=True, cache=True, error_model="numpy")'
    yield "def merge(places, floats, whole, spans, pieces, first, last):"
    yield "    zero, one, flaws = np.float32(0), np.float32(1), 0"
    split = _blocks(len(variant.rows))
    if len(split) > 1:
        for name in _sums(variant.form):
            yield f"    part_{name}, total_{name} = np.empty({TILE}, np.float32), np.empty({TILE}, np.float32)"
    yield "    for p in range(first, last):"
    yield "        s = pieces[p, 0]"
    yield "        if places[s, 2]:"
    yield "            continue"
    yield "        start, stop = pieces[p, 1], pieces[p, 2]"
    yield "        a = start"
    yield "        while a < stop:"
    yield f"            n = min(stop - a, {TILE if len(split) > 1 else 1 << 62})"
    for line in (*_ends(variant), *_tile(variant, split), "a += n"):
        yield "            " + line
    yield "    return flaws"


def _blocks(rows: int) -> list[range]:
    return [range(start, min(start + TOGETHER, rows)) for start in range(0, rows, TOGETHER)]


def _ends(variant: Variant) -> Iterator[str]:
    """Yield what ends a tile where something changes that is then the same for all of its elements: on which side of
    the place of a cut they lie, the upper halves of their numbers. Segments are not cut into pieces.
    """
    keep = variant.form.keep
    if variant.packed:
        return
    if keep in ("drawn", "ranked"):
        yield f"n = min(n, {HIGH} - (places[s, 3] + a) % {HIGH})"
    if keep in ("largest", "between"):
        for k in range(len(variant.rows)):
            for place in (1, 3) if keep == "between" else (1,):
                yield f"left = np.int64(whole[s, {k}, {place}]) - a"
                yield "n = min(n, left) if left > 0 else n"


def _tile(variant: Variant, split: list[range]) -> Iterator[str]:
    """Yield what is done with n elements from `a` on."""
    form = variant.form
    yield from (_array("base", "places[s, 1]", variant.base), _array("live", "places[s, 0]", variant.live))
    if form.join == "blend":
        yield "base_weight = spans[s, 0]"
    if form.divide and not form.elects:
        yield "divisor = spans[s, 1]"
    yield "here, there = np.uint32(a), np.uint32(places[s, 3] + a)"
    for block in split:
        for k in block:
            yield from _row_arrays(k, variant)
        yield from _loops(variant, block, first=block is split[0], last=block is split[-1])


def _array(name: str, address: str, dtype: str) -> str:
    return f"{name} = carray(pointer({address} + {_BYTES[dtype]} * a), n, {_WORDS[dtype]})"


def _row_arrays(k: int, variant: Variant) -> Iterator[str]:
    """Yield what a row reads, and its numbers."""
    row, at = variant.rows[k], {name: f"places[s, {HEAD + len(COLUMNS) * k + i}]" for i, name in enumerate(COLUMNS)}
    if row.kind == "int8":
        yield f"x{k} = carray(pointer({at['values']} + a), n, np.uint8)"
    elif row.kind == "int4":
        yield f"x{k} = carray(pointer({at['values']} + a // 2), n // 2 + 32, np.uint8)"
    else:
        yield _array(f"x{k}", at["values"], row.dtype)
    if row.kind in ("int8", "int4"):
        yield f"step{k} = carray(pointer({at['steps']} + 4 * (a // 64)), n // 64 + 2, np.float32)"
        yield f"zero{k} = carray(pointer({at['zeros']} + a // 64), n // 64 + 2, np.uint8)"
    if row.masked:
        yield f"mask{k} = carray(pointer({at['mask']} + 4 * (a // 32)), n // 32 + 1, np.uint32)"
    if variant.form.keep == "ranked":
        yield f"rank{k} = carray(pointer({at['ranks']} + 2 * a), n, np.uint16)"
    yield f"w{k} = floats[s, {k}, 0]"
    keep, simple = variant.form.keep, not variant.packed
    for name, place in (("cut", 0), ("top", 2)):
        if keep == "between" or (keep == "largest" and name == "cut"):
            yield f"{name}{k}, stop_{name}{k} = whole[s, {k}, {place}], whole[s, {k}, {place + 1}]"
            if simple:  # all elements are before the place of the cut, or none is
                yield f"{name}{k} = {name}{k} if a < stop_{name}{k} else np.uint32({name}{k} + np.uint32(1))"
    if keep == "drawn":
        yield f"limit{k}, scale{k} = limit(floats[s, {k}, 1]), floats[s, {k}, 2]"
    if keep == "ranked":
        yield f"chance{k}, more{k}, scale{k} = floats[s, {k}, 1], floats[s, {k}, 2], floats[s, {k}, 3]"
    if keep in ("drawn", "ranked"):
        yield f"key{k}, other{k} = whole[s, {k}, 0], whole[s, {k}, 1]"
        if simple:
            yield f"key{k} = with_high(there, key{k})"


def _loops(variant: Variant, block: range, first: bool, last: bool) -> Iterator[str]:
    """Yield the loops over the elements for some rows."""
    body = list(_element(variant, block, first, last))
    if not variant.packed:
        yield "for i in range(n):"
        yield from ("    " + line for line in body)
        return
    for limit in (SEGMENT, 0):  # whole segments, of a length that is known; and what is left
        yield f"for g in range(n // {SEGMENT}):" if limit else f"if n % {SEGMENT}:"
        if not limit:
            yield f"    g = n // {SEGMENT}"
        for k in block:
            row = variant.rows[k]
            if row.kind in ("int8", "int4"):
                yield f"    at{k}, from{k} = step{k}[g // 2], np.float32(zero{k}[g // 2])"
            if row.kind == "int4":
                yield f"    byte{k} = np.uint64((g // 2) * 32)"
                yield f"    half{k}, unit{k} = np.uint8(240 if g % 2 else 15), np.float32(0.0625 if g % 2 else 1)"
            if row.masked:
                yield f"    word{k} = mask{k}[g]"
        yield f"    for j in range({limit or f'n % {SEGMENT}'}):"
        yield f"        i = np.uint64(g * {SEGMENT}) + np.uint64(j)"
        yield from ("        " + line for line in body)


def _sums(form: Form) -> list[str]:
    """Return the names of what is summed over the rows."""
    if not form.elects:
        return ["t"]
    return ["t", "up", "down", *(["w_up", "w_down", "a_up", "a_down"] if form.divide else [])]


def _element(variant: Variant, block: range, first: bool, last: bool) -> Iterator[str]:
    """Yield what is done with element i."""
    form, names = variant.form, _sums(variant.form)
    yield f"b = {_READ[variant.base].format('base[i]')}"
    fresh = block[0] % PARTIAL == 0
    if not fresh:
        yield from (f"{name} = part_{name}[i]" for name in names)
    elif form.join == "blend":
        yield "t = b * base_weight"
    for k in block:
        yield from _value(k, variant)
        begins = fresh and k == block[0] and form.join != "blend"
        for name, term in _terms(k, form).items():
            yield f"{name} = {term}" if begins else f"{name} = {name} + {term}"
    if (block[-1] + 1) % PARTIAL and not last:
        yield from (f"part_{name}[i] = {name}" for name in names)
        return
    if block[-1] >= PARTIAL:
        yield from (f"{name} = total_{name}[i] + {name}" for name in names)
    if not last:
        yield from (f"total_{name}[i] = {name}" for name in names)
        return
    yield from _result(form)
    result = _ROUND[variant.rounded].format("result")
    if variant.live != variant.rounded:
        result = _ROUND[variant.live].format(_READ[variant.rounded].format(result))
    yield f"live[i] = {result}"


def _value(k: int, variant: Variant) -> Iterator[str]:
    """Yield v, the weighted element of a row, 0 where it is not kept."""
    row, form = variant.rows[k], variant.form
    blends = form.join == "blend"
    if row.kind == "int8":
        yield f"x = (np.float32(x{k}[i]) - from{k}) * at{k}"
    elif row.kind == "int4":
        yield f"code = np.uint8(x{k}[byte{k} + np.uint64(j)] & half{k})"  # a shift would take lanes of 64 bits
        yield f"x = (np.float32(code) * unit{k} - from{k}) * at{k}"
    else:
        yield f"x = {_READ[row.dtype].format(f'x{k}[i]')}" + (" - b" if row.kind == "expert" and not blends else "")
    if row.masked:
        yield f"x = x if (word{k} >> np.uint32(j)) & np.uint32(1) else zero"
    if blends and (row.kind != "expert" or row.masked):
        yield "x = b + x"
    if form.keep in ("largest", "between"):
        yield "m = as_bits(x) & np.uint32(0x7FFFFFFF)"
        before = "(np.uint32(here + np.uint32(i)) < stop_{0}{k})"
        inside = f"(m > {{0}}{{k}}) | ((m == {{0}}{{k}}) & {before})" if variant.packed else "m >= {0}{k}"
        kept = f"({inside.format('cut', k=k)})"
        if form.keep == "between":
            kept = f"{kept} & ~({inside.format('top', k=k)})"
        yield f"x = x if {kept} else zero"
    if form.keep in ("drawn", "ranked"):
        yield "place = np.uint32(there + np.uint32(i))"
        yield f"bits = {'draw(place, ' if variant.packed else 'mixed(place ^ '}key{k}, other{k})"
    if form.keep == "drawn":
        yield f"x = x * scale{k} if (bits | LOW) <= limit{k} else zero"
    if form.keep == "ranked":
        yield "u = np.float32(bits >> np.uint32(8)) * np.float32(2.0**-24)"
        yield f"c = chance{k} + np.float32(rank{k}[i]) * more{k}"
        yield f"x = (x / c if scale{k} != zero else x) if u < c else zero"
    yield f"v = x * w{k}"


def _terms(k: int, form: Form) -> dict[str, str]:
    """Return what a row adds to each sum."""
    if not form.elects:
        return {"t": "v"}
    vote = "v" if form.join == "elect" else "(one if v > zero else (-one if v < zero else zero))"
    terms = {"t": vote, "up": "(v if v > zero else zero)", "down": "(v if v < zero else zero)"}
    if form.divide:
        terms |= {"w_up": f"(w{k} if v > zero else zero)", "w_down": f"(w{k} if v < zero else zero)"}
        terms |= {"a_up": f"(abs(w{k}) if v > zero else zero)", "a_down": f"(abs(w{k}) if v < zero else zero)"}
    return terms


def _result(form: Form) -> Iterator[str]:
    """Yield the merged element."""
    if form.elects:
        yield "merged = up if t >= zero else down"
        if form.divide:
            yield "agreed = w_up if t >= zero else w_down"
            yield "size = a_up if t >= zero else a_down"
            yield f"flaws += np.int64(abs(agreed) < np.float32({CANCELLED}) * size)"
            yield "merged = merged / (agreed if agreed != zero else one)"
    elif form.divide:
        yield "merged = t / divisor"
    else:
        yield "merged = t"
    yield "result = merged" if form.join == "blend" else "result = b + merged"
