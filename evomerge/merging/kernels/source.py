"""A kernel as a function of LLVM: one loop over the elements of a span that reads base and rows and writes the result.

In: a `Variant`: a form, the dtypes of base and model, and the kind of each row. Out: text for LLVM. All rows are
written out, so that an element is read once, stays in registers, and is written once. What the loop computes is what
`plain.py` computes, in the same order and with the same roundings:

- each product is rounded before it is added, row by row, and sums of 16 rows are added up;
- an election keeps the sums of the positive and of the negative elements, and takes the one whose sign won;
- a scale multiplies what is left.

The loop takes `lanes` elements at a time, and the last ones of a span one by one. Kinds that are packed (quantised,
masked) are read in whole groups of 64 elements, in which everything but the element is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evomerge.merging.kernels.bits import BYTES, WORDS, rounded, widened
from evomerge.merging.kernels.draw import LOW, draw, limit, mixed, uniform, with_high
from evomerge.merging.kernels.form import CANCELLED, Form
from evomerge.merging.kernels.lanes import BIT, BYTE, FLOAT, HALF, LONG, WORD, Code, Value, Variable, counted
from evomerge.merging.kernels.table import COLUMNS, GROUP, HEAD, Row, Variant

PARTIAL = 16
"""Rows after which a new partial sum begins, as in `torch.sum`."""
AHEAD = {"values": 512, "steps": 256, "zeros": 64}
"""Bytes ahead of what is read of a quantised row that the processor is asked to fetch: by itself it does not see so
many places coming, and waits for a tenth of the time."""
HIGH = 1 << 16
"""Elements of a parameter whose numbers have the same upper half."""

Numbers = Mapping[str, Value]
"""What is the same for all elements of a row."""


def source(variant: Variant, lanes: int, tables: bool = False) -> str:
    """Return the text of `merge`, which says how many quotients were refused.

    It takes the addresses of the arrays of `table.Places`, that of the pieces, the first piece and the one after the
    last.

    Args:
        variant: what it merges.
        lanes: elements that it takes at a time; a variant that is packed takes whole groups instead.
        tables: whether the processor can look up 16 floats at once.
    """
    return _Kernel(variant, GROUP if variant.packed else lanes, tables).text()


class _Kernel:
    """Writes the function of a variant."""

    def __init__(self, variant: Variant, lanes: int, tables: bool) -> None:
        self.variant, self.form, self.lanes, self.tables = variant, variant.form, lanes, tables
        self.code = Code("merge", 7)
        self._flaws = Variable(self.code.number(0))

    def text(self) -> str:
        code = self.code
        *_, pieces, first, last = code.arguments
        turn = Variable(first)
        with code.loop(turn, last) as p:
            turn.set(p + 1)
            site, start, stop = (code.load(LONG, pieces + p * 24 + 8 * i) for i in range(3))
            with code.when(self._place(site, 2).same(0)):
                self._piece(site, start, stop)
        return code.returned(self._flaws.get())

    def _place(self, site: Value, column: int) -> Value:
        """Return an entry of `Places.places`."""
        columns = HEAD + len(COLUMNS) * len(self.variant.rows)
        return self.code.load(LONG, self.code.arguments[0] + site * (8 * columns) + 8 * column)

    def _piece(self, site: Value, start: Value, stop: Value) -> None:
        """Write what is done with the elements of a piece: tile by tile, each in whole steps and then one by one."""
        code, element = self.code, Variable(start)
        self._live, self._base, first = (self._place(site, column) for column in (0, 1, 3))
        self._base_weight, self._divisor = (code.load(FLOAT, code.arguments[3] + site * 8 + 4 * i) for i in range(2))
        rows = [self._numbers(site, k) for k in range(len(self.variant.rows))]
        with code.loop(element, stop) as a:
            end = stop
            for near in self._limits(rows, a, first):
                end = end.at_most(near)
            here = [{**numbers, **self._of_tile(numbers, a, first)} for numbers in rows]
            whole = end - ((end - a) & (self.lanes - 1))
            for lanes, until in ((self.lanes, whole), (1, end)):
                with code.loop(element, until) as i:
                    self._elements(i, lanes, here, first)
                    element.set(i + lanes)

    def _numbers(self, site: Value, k: int) -> Numbers:
        """Return where a row lies, and the numbers of the candidate."""
        code, keep, rows = self.code, self.form.keep, len(self.variant.rows)
        _, floats, whole, *_ = code.arguments
        found = {name: self._place(site, HEAD + len(COLUMNS) * k + i) for i, name in enumerate(COLUMNS)}
        at = (site * rows + k) * 16
        weight, *chances = (code.load(FLOAT, floats + at + 4 * i) for i in range(4))
        words = [code.load(WORD, whole + at + 4 * i) for i in range(4)]
        found["weight"] = weight
        if keep in ("largest", "between"):
            found |= dict(zip(("cut", "stop cut", "top", "stop top"), words, strict=True))
        if keep in ("drawn", "ranked"):
            found |= {"key": words[0], "other": words[1]}
        if keep == "drawn":
            found |= {"limit": limit(chances[0]), "scale": chances[1]}
        if keep == "ranked":
            found |= dict(zip(("chance", "more", "divides"), chances, strict=True))
        return found

    def _limits(self, rows: Sequence[Numbers], a: Value, first: Value) -> Iterator[Value]:
        """Yield where a tile ends that begins at `a`, since something changes that is the same for all of it: on which
        side of the place of a cut they lie, the upper halves of their numbers. Groups are not cut into pieces.
        """
        if self.variant.packed:
            return
        if self.form.keep in ("drawn", "ranked"):
            yield ((first + a) | (HIGH - 1)) + 1 - first
        for name in self._cuts:
            for numbers in rows:
                place = numbers[f"stop {name}"].to(LONG)
                yield (place > a).where(place, (1 << 64) - 1)

    def _of_tile(self, numbers: Numbers, a: Value, first: Value) -> Numbers:
        """Return those of the numbers of a row that are others in each tile."""
        if self.variant.packed:
            return {}
        found = {}
        for name in self._cuts:  # all elements are before the place of the cut, or none is
            cut = numbers[name]
            found[name] = (a < numbers[f"stop {name}"].to(LONG)).where(cut, cut + 1)
        if "key" in numbers:
            found["key"] = with_high((first + a).to(WORD), numbers["key"])
        return found

    @property
    def _cuts(self) -> tuple[str, ...]:
        return {"largest": ("cut",), "between": ("cut", "top")}.get(self.form.keep, ())

    def _elements(self, i: Value, lanes: int, rows: Sequence[Numbers], first: Value) -> None:
        """Write what is done with some elements, the first of them i."""
        variant, form = self.variant, self.form
        base = self._read(self._base, i, lanes, variant.base)
        sums: dict[str, Value] = {"t": base * self._base_weight} if form.join == "blend" else {}
        totals: dict[str, Value] = {}
        for k, numbers in enumerate(rows):
            if k and k % PARTIAL == 0:
                totals, sums = _added(totals, sums), {}
            if self._has_table(variant.rows[k], lanes):
                weighted = self._in_table(i, numbers)
            else:
                weighted = self._value(k, i, lanes, base, numbers, first) * numbers["weight"]
            sums = _added(sums, _terms(form, weighted, numbers["weight"]))
        merged = self._merged(_added(totals, sums))
        if form.scale != 1:
            merged = merged * form.scale
        found = rounded(merged if form.join == "blend" else base + merged, variant.rounded)
        if variant.live != variant.rounded:
            found = rounded(widened(found, variant.rounded), variant.live)
        self.code.store(found, self._live + i * BYTES[variant.live])

    def _read(self, address: Value, i: Value, lanes: int, dtype: str) -> Value:
        return widened(self.code.load(WORDS[dtype], address + i * BYTES[dtype], lanes), dtype)

    def _value(self, k: int, i: Value, lanes: int, base: Value, numbers: Numbers, first: Value) -> Value:
        """Return the elements of a row, 0 where they are not kept."""
        row, blends = self.variant.rows[k], self.form.join == "blend"
        if row.kind in ("int8", "int4"):
            x = self._decoded(row, i, lanes, numbers)
        else:
            x = self._read(numbers["values"], i, lanes, row.dtype)
            if row.kind == "expert" and not blends:
                x = x - base
        if row.masked:
            x = self._bits(numbers["mask"], i, lanes).where(x, 0.0)
        if blends and (row.kind != "expert" or row.masked):
            x = base + x
        if self._cuts:
            kept, *beyond = (self._above(x, i, numbers, name) for name in self._cuts)
            return (kept & ~beyond[0] if beyond else kept).where(x, 0.0)
        if self.form.keep == "all":
            return x
        place = (first + i).to(WORD).spread(lanes).numbered()
        key, other = numbers["key"], numbers["other"]
        bits = draw(place, key, other) if self.variant.packed else mixed(place ^ key, other)
        if self.form.keep == "drawn":
            return ((bits | LOW) <= numbers["limit"]).where(x * numbers["scale"], 0.0)
        rank = self.code.load(HALF, numbers["ranks"] + i * 2, lanes).to(FLOAT)
        chance = numbers["chance"] + rank * numbers["more"]
        wanted = numbers["divides"].same(0.0).where(x, x / chance)
        return (uniform(bits) < chance).where(wanted, 0.0)

    def _above(self, x: Value, i: Value, numbers: Numbers, name: str) -> Value:
        """Return which elements are above a cut, or at it and before its place."""
        magnitude = x.bits(WORD) & 0x7FFFFFFF
        if not self.variant.packed:
            return magnitude >= numbers[name]
        before = i.to(WORD).spread(x.lanes).numbered() < numbers[f"stop {name}"]
        return (magnitude > numbers[name]) | (magnitude.same(numbers[name]) & before)

    def _decoded(self, row: Row, i: Value, lanes: int, numbers: Numbers) -> Value:
        """Return elements of a quantised row: a group, or one."""
        code, values, group = self.code, numbers["values"], i >> 6
        if row.kind == "int8":
            codes = code.load(BYTE, values + i, lanes)
        elif lanes == GROUP:  # the first half of a group is in the low bits
            both = code.load(BYTE, values + group * 32, lanes // 2)
            codes = (both & 15).followed(both >> 4)
        else:
            byte = code.load(BYTE, values + group * 32 + (i & 31))
            codes = (byte >> ((i & 32) >> 3).to(BYTE)) & 15
        if lanes == GROUP:
            self._fetch(i if row.kind == "int8" else group * 32, group, numbers)
        return self._number(codes, group, numbers)

    def _number(self, codes: Value, group: Value, numbers: Numbers) -> Value:
        """Return (code − zero) · step of codes of a group."""
        step = self.code.load(FLOAT, numbers["steps"] + group * 4)
        zero = self.code.load(BYTE, numbers["zeros"] + group)
        return (_shifted(codes) - _shifted(zero)) * step

    def _fetch(self, place: Value, group: Value, numbers: Numbers) -> None:
        for name, at in {"values": place, "steps": group * 4, "zeros": group}.items():
            self.code.prefetch(numbers[name] + at + AHEAD[name])

    def _has_table(self, row: Row, lanes: int) -> bool:
        """Return whether a row has so few different numbers in a group that they are computed once, and looked up."""
        plain = row.kind == "int4" and not row.masked and self.form.keep == "all" and self.form.join != "blend"
        return plain and self.tables and lanes == GROUP

    def _in_table(self, i: Value, numbers: Numbers) -> Value:
        """Return the weighted elements of a group of codes of 4 bits."""
        code, group = self.code, i >> 6
        self._fetch(group * 32, group, numbers)
        table = self._number(code.number(0, BYTE).spread(16).numbered(), group, numbers) * numbers["weight"]
        words = code.load(BYTE, numbers["values"] + group * 32, 32).to(WORD)
        return words.in_table(table).followed((words >> 4).in_table(table))

    def _bits(self, address: Value, i: Value, lanes: int) -> Value:
        """Return the bits of a mask: of a group, or of one element."""
        if lanes == GROUP:
            return self.code.load(WORD, address + (i >> 3), 2).bits(BIT, GROUP)
        word = self.code.load(WORD, address + (i >> 5) * 4)
        return (word >> (i & 31).to(WORD)).to(BIT)

    def _merged(self, sums: Mapping[str, Value]) -> Value:
        """Return what the sums over the rows make."""
        t = sums["t"]
        if not self.form.elects:
            return t / self._divisor if self.form.divide else t
        plus = t >= 0.0
        merged = plus.where(sums["up"], sums["down"])
        if not self.form.divide:
            return merged
        agreed, size = plus.where(sums["w up"], sums["w down"]), plus.where(sums["a up"], sums["a down"])
        refused = abs(agreed) < size * CANCELLED
        self._flaws.set(self._flaws.get() + counted(refused))
        return merged / agreed.same(0.0).where(1.0, agreed)


def _shifted(codes: Value) -> Value:
    """Return 2²³ + code as float32: by its bits, which is less work than to convert a code."""
    return codes.filled(0x4B000000).bits(FLOAT)


def _added(sums: Mapping[str, Value], terms: Mapping[str, Value]) -> dict[str, Value]:
    return {name: sums[name] + term if name in sums else term for name, term in terms.items()}


def _terms(form: Form, v: Value, weight: Value) -> dict[str, Value]:
    """Return what a row adds to each sum."""
    if not form.elects:
        return {"t": v}
    up, down = v > 0.0, v < 0.0
    vote = v if form.join == "elect" else up.where(1.0, down.where(-1.0, 0.0))
    terms = {"t": vote, "up": up.where(v, 0.0), "down": down.where(v, 0.0)}
    if form.divide:
        terms |= {"w up": up.where(weight, 0.0), "w down": down.where(weight, 0.0)}
        terms |= {"a up": up.where(abs(weight), 0.0), "a down": down.where(abs(weight), 0.0)}
    return terms
