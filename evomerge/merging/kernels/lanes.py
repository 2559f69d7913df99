"""What kernels are written in: values of several lanes with the operators of Python, which become LLVM's instructions.

In: arithmetic, as in `t + x * w`. Out: a function of LLVM, as text. A value has one lane or as many as a kernel takes
elements at a time; one with a single lane joins one with many as the same number in all of them. Integers have no sign.
Floats are rounded after every operation: nothing is fused and nothing reordered, whatever the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
BIT, BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


@dataclass(frozen=True, eq=False)
class Value:
    """Numbers of one type, one a lane.

    Attributes:
        at: where the instructions go.
        raw: what LLVM calls it.
    """

    at: Any  # an ir.IRBuilder, whose methods say that they return nothing
    raw: Any

    @property
    def lanes(self) -> int:
        """How many there are."""
        return self.raw.type.count if isinstance(self.raw.type, ir.VectorType) else 1

    @property
    def kind(self) -> Any:
        """Type of one of them."""
        return self.raw.type.element if isinstance(self.raw.type, ir.VectorType) else self.raw.type

    @property
    def floats(self) -> bool:
        """Whether they are floats."""
        return self.kind in (FLOAT, DOUBLE)

    def spread(self, lanes: int) -> Value:
        """Return the single lane in several."""
        if lanes == self.lanes:
            return self
        if isinstance(self.raw, ir.Constant):
            return self._new(ir.Constant(ir.VectorType(self.kind, lanes), [self.raw.constant] * lanes))
        one = ir.Constant(ir.VectorType(self.kind, lanes), ir.Undefined)
        one = self.at.insert_element(one, self.raw, ir.Constant(WORD, 0))
        return self._new(self.at.shuffle_vector(one, one, ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes)))

    def followed(self, other: Value) -> Value:
        """Return these lanes, then those of another value."""
        places = ir.Constant(ir.VectorType(WORD, 2 * self.lanes), list(range(2 * self.lanes)))
        return self._new(self.at.shuffle_vector(self.raw, other.raw, places))

    def filled(self, word: int) -> Value:
        """Return bytes as the lowest ones of words, whose other bytes are those of a constant."""
        if self.lanes == 1:
            return self.to(WORD) | word
        n = self.lanes
        fill = ir.Constant(self.raw.type, [word >> 8 * (i % 4) & 255 for i in range(n)])
        places = ir.Constant(ir.VectorType(WORD, 4 * n), [n + i % 4 if i % 4 else i // 4 for i in range(4 * n)])
        return self._new(self.at.shuffle_vector(self.raw, fill, places)).bits(WORD, n)

    def in_table(self, table: Value) -> Value:
        """Return the number of a table of 16 floats at each place, a word of which only the lowest 4 bits count.

        It takes an instruction of AVX-512 for 16 places.
        """
        kind = ir.FunctionType(table.raw.type, [table.raw.type, ir.VectorType(WORD, 16)])
        look = self.at.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
        parts = []
        for start in range(0, self.lanes, 16):
            places = ir.Constant(ir.VectorType(WORD, 16), list(range(start, start + 16)))
            parts.append(self._new(self.at.call(look, [table.raw, self.at.shuffle_vector(self.raw, self.raw, places)])))
        while len(parts) > 1:
            parts = [one.followed(other) for one, other in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def numbered(self) -> Value:
        """Return the first lane and those that count on from there; of a value with the same in all lanes."""
        if self.lanes == 1:
            return self
        return self + self._new(ir.Constant(self.raw.type, list(range(self.lanes))))

    def to(self, kind: Any) -> Value:
        """Return them as integers with other bits, cut or filled up with zeros; or as floats, or the other way."""
        if self.kind == kind:
            return self
        if self.floats:
            how = self.at.fptoui if kind not in (FLOAT, DOUBLE) else self.at.fpext
        elif kind in (FLOAT, DOUBLE):
            how = self.at.uitofp
        else:
            how = self.at.zext if kind.width > self.kind.width else self.at.trunc
        return self._new(how(self.raw, _several(kind, self.lanes)))

    def bits(self, kind: ir.Type, lanes: int = 0) -> Value:
        """Return the same bits as another type, in as many lanes unless said otherwise."""
        return self._new(self.at.bitcast(self.raw, _several(kind, lanes or self.lanes)))

    def where(self, one: Value | float, other: Value | float) -> Value:
        """Return the lanes of one where these are true, those of the other elsewhere; two constants are floats."""
        kind = next((each.kind for each in (one, other) if isinstance(each, Value)), FLOAT)
        values = [each if isinstance(each, Value) else self._new(ir.Constant(kind, each)) for each in (one, other)]
        lanes = max(each.lanes for each in (self, *values))
        return self._new(self.at.select(*(each.spread(lanes).raw for each in (self, *values))))

    def at_most(self, other: Value | float) -> Value:
        """Return the smaller of each two."""
        return (self < other).where(self, other)

    def __add__(self, other: Value | float) -> Value:
        return self._both(self.at.fadd if self.floats else self.at.add, other)

    def __sub__(self, other: Value | float) -> Value:
        return self._both(self.at.fsub if self.floats else self.at.sub, other)

    def __mul__(self, other: Value | float) -> Value:
        return self._both(self.at.fmul if self.floats else self.at.mul, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._both(self.at.fdiv, other)

    def __neg__(self) -> Value:
        return self._new(self.at.fneg(self.raw))

    def __abs__(self) -> Value:
        return (self.bits(WORD) & 0x7FFFFFFF).bits(FLOAT)

    def __and__(self, other: Value | int) -> Value:
        return self._both(self.at.and_, other)

    def __or__(self, other: Value | int) -> Value:
        return self._both(self.at.or_, other)

    def __xor__(self, other: Value | int) -> Value:
        return self._both(self.at.xor, other)

    def __invert__(self) -> Value:
        return self._new(self.at.not_(self.raw))

    def __lshift__(self, other: Value | int) -> Value:
        return self._both(self.at.shl, other)

    def __rshift__(self, other: Value | int) -> Value:
        return self._both(self.at.lshr, other)

    def __lt__(self, other: Value | float) -> Value:
        return self._compared("<", other)

    def __le__(self, other: Value | float) -> Value:
        return self._compared("<=", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compared(">", other)

    def __ge__(self, other: Value | float) -> Value:
        return self._compared(">=", other)

    def same(self, other: Value | float) -> Value:
        """Return where both are equal; NaN equals nothing."""
        return self._compared("==", other)

    def _compared(self, how: str, other: Value | float) -> Value:
        compare = self.at.fcmp_ordered if self.floats else self.at.icmp_unsigned
        return self._both(lambda a, b: compare(how, a, b), other)

    def _both(self, how: Callable[[Any, Any], Any], other: Value | float) -> Value:
        a, b = self._pair(other)
        return self._new(how(a.raw, b.raw))

    def _pair(self, other: Value | float) -> tuple[Value, Value]:
        if not isinstance(other, Value):
            other = self._new(ir.Constant(self.kind, other))
        lanes = max(self.lanes, other.lanes)
        return self.spread(lanes), other.spread(lanes)

    def _new(self, raw: Any) -> Value:
        return Value(self.at, raw)


class Variable:
    """A value that changes as a function runs."""

    def __init__(self, value: Value) -> None:
        self._at = value.at
        with value.at.goto_entry_block():
            self._place = value.at.alloca(value.raw.type)
        self.set(value)

    def get(self) -> Value:
        """Return what it is."""
        return Value(self._at, self._at.load(self._place))

    def set(self, value: Value) -> None:
        """Let it be something else."""
        self._at.store(value.raw, self._place)


class Code:
    """A function that is being written: it takes integers of 64 bits, and returns one.

    Args:
        name: of the function.
        arguments: how many.

    Attributes:
        arguments: their values.
    """

    def __init__(self, name: str, arguments: int) -> None:
        self._module = ir.Module(name)
        function = ir.Function(self._module, ir.FunctionType(LONG, [LONG] * arguments), name)
        self._at: Any = ir.IRBuilder(function.append_basic_block("entry"))
        body = function.append_basic_block("body")
        self._at.branch(body)  # before it, variables are made
        self._at.position_at_end(body)
        self.arguments = [Value(self._at, argument) for argument in function.args]

    def number(self, value: float, kind: ir.Type = LONG) -> Value:
        """Return a constant."""
        return Value(self._at, ir.Constant(kind, value))

    def load(self, kind: ir.Type, address: Value, lanes: int = 1) -> Value:
        """Return what lies at an address."""
        return Value(self._at, self._at.load(self._pointer(kind, address, lanes), align=_bytes(kind)))

    def store(self, value: Value, address: Value) -> None:
        """Put something at an address."""
        self._at.store(value.raw, self._pointer(value.kind, address, value.lanes), align=_bytes(value.kind))

    def prefetch(self, address: Value) -> None:
        """Ask for what lies at an address, so that it is in the cache when it is read."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, WORD, WORD, WORD])
        how = self._module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        words = [ir.Constant(WORD, number) for number in (0, 3, 1)]  # to read, soon again, data
        self._at.call(how, [self._at.inttoptr(address.raw, pointer), *words])

    @contextmanager
    def loop(self, counter: Variable, stop: Value) -> Iterator[Value]:
        """Write what is done as long as a counter is below an end; what stands inside counts it up."""
        head, body, end = (self._at.append_basic_block(name) for name in ("head", "body", "end"))
        self._at.branch(head)
        self._at.position_at_end(head)
        self._at.cbranch((counter.get() < stop).raw, body, end)
        self._at.position_at_end(body)
        yield counter.get()
        self._at.branch(head)
        self._at.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Write what is done where a condition holds."""
        with self._at.if_then(condition.raw):
            yield

    def returned(self, value: Value) -> str:
        """Return the text of the function that returns this."""
        self._at.ret(value.raw)
        return str(self._module)

    def _pointer(self, kind: ir.Type, address: Value, lanes: int) -> Any:
        return self._at.inttoptr(address.raw, _several(kind, lanes).as_pointer())


def counted(bits: Value) -> Value:
    """Return how many lanes are true."""
    if bits.lanes == 1:
        return bits.to(LONG)
    return Value(bits.at, bits.at.ctpop(bits.bits(ir.IntType(bits.lanes), 1).raw)).to(LONG)


def _several(kind: ir.Type, lanes: int) -> ir.Type:
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def _bytes(kind: ir.Type) -> int:
    return kind.width // 8 if isinstance(kind, ir.IntType) else 4 if kind == FLOAT else 8
