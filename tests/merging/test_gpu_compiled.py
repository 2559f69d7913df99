"""What Triton makes of its kernel for a card that need not be there: no product is fused, and memory is read widely."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from evomerge.merging.kernels.form import Form
from evomerge.merging.kernels.gpu import constants
from evomerge.merging.kernels.gpu_kernel import merge
from evomerge.merging.kernels.table import Row, Variant

row = Row("expert", "bfloat16")
given = constants(Variant(Form("largest", "elect", True), (row,) * 3, "bfloat16", "bfloat16", "bfloat16"))
given["FULL"] = True
kinds = dict(places="*i64", floats="*fp32", whole="*i32", spans="*fp32", pieces="*i64", flaws="*i32")
source = ASTSource(merge, kinds | dict.fromkeys(given, "constexpr"), constexprs=given)
print(compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}).asm["ptx"])
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_products_are_rounded_and_rows_are_read_in_vectors() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    text = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=True)
    instructions = set(re.findall(r"\b((?:fma|mul|add|div)\.\S*f32)\b", text.stdout))
    assert instructions == {"mul.rn.f32", "add.rn.f32", "div.rn.f32"}  # with a rounding of its own, each stays alone
    assert text.stdout.count("ld.global.v4.b32") == 1 + 3  # base and rows, eight elements together
    assert text.stdout.count("st.global.v4.b32") == 1
