"""The cases of reading: merge YAMLs as people write them, which both merge from the same text.

In: a case. Out: a directory with models and `mergekit.yaml`. Each has another shape: whole models, slices, a module;
scalars, gradients, filters; bases that are listed, are not, or are missing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from evomerge.common.files import write_atomically
from evomerge.models.live import load_skeleton
from mergekit_parity.cases import FAMILIES, write_models


@dataclass(frozen=True)
class Reading:
    """A YAML that both must merge alike.

    Attributes:
        name: what the output calls it.
        text: the YAML; models are `base` and `a` to `e`.
        family: of the models.
        twin: a text of which mergekit makes what evomerge makes of the other, where its own differs.
        loose: whether the last bits may differ: by `NEAR` of the largest element of a tensor.
        why: what it does otherwise then.
    """

    name: str
    text: str
    family: str = "llama"
    twin: str = ""
    loose: bool = False
    why: str = ""


def write_reading(case: Reading, directory: Path) -> dict[str, str]:
    """Write models and YAML.

    Returns:
        alias -> key of the tensors that are tied.
    """
    write_models(FAMILIES[case.family], directory, zlib.crc32(case.name.encode()))
    write_atomically(directory / "mergekit.yaml", case.text)
    write_atomically(directory / "twin.yaml", case.twin or case.text)
    return load_skeleton(directory / "base", FAMILIES[case.family].auto_class).tied


def _models(method: str, *models: str, base: str | None = "base", dtype: str = "float32", more: str = "") -> str:
    head = f"merge_method: {method}\n" + (f"base_model: {base}\n" if base else "") + (f"dtype: {dtype}\n" * bool(dtype))
    return head + more + "models:\n" + "".join(f"- {model}\n" for model in models)


def _each(name: str, **settings: str) -> str:
    inside = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"{{model: {name}, parameters: {{{inside}}}}}"


LAMBDA = "mergekit multiplies the sum by lambda, evomerge the weights"
ORDER = "mergekit adds up in another order"
SIXTEEN = "mergekit rounds every step to 16 bits, evomerge the result alone"
GRADIENT = "[0.1, 0.35, 0.9]"
FILTERS = "[{filter: self_attn, value: [0.2, 0.8]}, {filter: mlp, value: 0.4}, {value: 0.55}]"
A, B, C = (_each(one, weight=value) for one, value in (("a", "0.3"), ("b", "0.45"), ("c", "-0.2")))
SLICES = """\
slices:
- sources: [{model: a, layer_range: [0, 1], parameters: {weight: 0.3}}, {model: base, layer_range: [0, 1]}]
- sources: [{model: a, layer_range: [1, 2], parameters: {weight: 0.5}}, {model: base, layer_range: [1, 2]}]
- sources: [{model: a, layer_range: [2, 3], parameters: {weight: 0.7}}, {model: base, layer_range: [2, 3]}]
"""
RANGES = """\
slices:
- sources:
  - {model: a, layer_range: [0, 2], parameters: {weight: [0.2, 0.4]}}
  - {model: b, layer_range: [0, 2], parameters: {weight: 0.3}}
  - {model: base, layer_range: [0, 2]}
- sources:
  - {model: a, layer_range: [2, 3], parameters: {weight: [0.6, 0.9]}}
  - {model: b, layer_range: [2, 3]}
  - {model: base, layer_range: [2, 3]}
  parameters: {weight: 0.25}
"""
SLERP_T = "[{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7]}, {value: 0.5}]"
CIRCLE = f"""\
slices:
- sources: [{{model: a, layer_range: [0, 3]}}, {{model: base, layer_range: [0, 3]}}]
parameters: {{t: {SLERP_T}}}
"""
SMALL_READINGS = (
    Reading("read task_arithmetic filters", _models("task_arithmetic", _each("a", weight=FILTERS), B)),
    Reading("read linear", _models("linear", _each("a", weight="1.0"), _each("b", weight="0.3"), base=None)),
)
READINGS = (
    *SMALL_READINGS,
    Reading("read task_arithmetic", _models("task_arithmetic", A, B, C)),
    Reading("read task_arithmetic gradient", _models("task_arithmetic", _each("a", weight=GRADIENT), B)),
    Reading("read task_arithmetic short gradient", _models("task_arithmetic", _each("a", weight="[0, 1]"), B)),
    Reading(
        "read task_arithmetic global weight",
        _models("task_arithmetic", "{model: a}", "{model: b}", more="parameters: {weight: 0.4}\n"),
    ),
    Reading("read task_arithmetic base listed", _models("task_arithmetic", "{model: base}", A, B)),
    Reading("read task_arithmetic normalize", _models("task_arithmetic", A, B, more="parameters: {normalize: true}\n")),
    Reading(
        "read task_arithmetic lambda",
        _models("task_arithmetic", A, B, more="parameters: {lambda: 0.7}\n"),
        twin=_models("task_arithmetic", _each("a", weight="0.21"), _each("b", weight="0.315")),
        why=LAMBDA,
    ),
    Reading(
        "read task_arithmetic layer slices",
        "merge_method: task_arithmetic\nbase_model: base\ndtype: float32\n" + SLICES,
    ),
    Reading(
        "read task_arithmetic ranges", "merge_method: task_arithmetic\nbase_model: base\ndtype: float32\n" + RANGES
    ),
    Reading(
        "read task_arithmetic module",
        _models("task_arithmetic", more="modules: {default: {models: [" + f"{A}, {B}" + "]}}\n").replace(
            "models:\n", ""
        ),
    ),
    Reading(
        "read task_arithmetic tied", _models("task_arithmetic", _each("a", weight=GRADIENT), B), family="llama-tied"
    ),
    Reading(
        "read task_arithmetic gpt2",
        _models("task_arithmetic", _each("a", weight="[{filter: attn, value: [0.1, 0.9]}, {value: 0.5}]"), B),
        family="gpt2",
    ),
    Reading(
        "read task_arithmetic float32 to bfloat16",
        _models("task_arithmetic", A, B, more="out_dtype: bfloat16\n"),
        family="llama-bf16-sharded",
    ),
    Reading(
        "read task_arithmetic bfloat16",
        _models("task_arithmetic", A, B, dtype="bfloat16"),
        family="llama-bf16-sharded",
        twin=_models("task_arithmetic", A, B, more="out_dtype: bfloat16\n"),
        why=SIXTEEN,
    ),
    Reading("read linear base listed", _models("linear", _each("base", weight="0.5"), A, _each("b", weight=GRADIENT))),
    Reading(
        "read linear five models",
        _models(
            "linear", *(_each(one, weight="0.2") for one in "abcde"), base=None, more="parameters: {normalize: false}\n"
        ),
    ),
    Reading(
        "read linear bfloat16",
        _models("linear", _each("a", weight="0.6"), _each("b", weight="0.4"), base=None, dtype="bfloat16"),
        family="llama-bf16-sharded",
    ),
    Reading(
        "read ties",
        _models("ties", _each("a", weight="0.5", density="0.53"), _each("b", weight="0.3", density="[0.4, 0.8]")),
    ),
    Reading(
        "read ties plain sum",
        _models(
            "ties",
            _each("a", weight="0.5", density="0.53"),
            B,
            more="parameters: {normalize: false, int8_mask: true}\n",
        ),
    ),
    Reading(
        "read ties lambda",
        _models(
            "ties",
            _each("a", weight="0.5", density="0.53"),
            _each("b", weight="0.3", density="0.8"),
            more="parameters: {lambda: 0.7}\n",
        ),
    ),
    Reading(
        "read dare_linear lambda", _models("dare_linear", A, B, more="parameters: {normalize: true, lambda: 1.3}\n")
    ),
    Reading(
        "read breadcrumbs",
        _models(
            "breadcrumbs",
            _each("a", weight="0.5", density="0.9", gamma="0.05"),
            _each("b", weight="0.4", density="0.7", gamma="0.05"),
        ),
    ),
    Reading(
        "read breadcrumbs_ties",
        _models("breadcrumbs_ties", _each("a", weight="0.5", density="0.9"), _each("b", weight="0.4", density="0.7")),
    ),
    Reading("read dare_linear whole", _models("dare_linear", A, B, more="parameters: {normalize: true}\n")),
    Reading("read dare_ties whole", _models("dare_ties", A, B, C)),
    Reading("read della whole", _models("della", _each("a", weight="0.3"), _each("b", weight="0.45"))),
    Reading("read della_linear whole", _models("della_linear", A, C)),
    Reading("read slerp", _models("slerp", "{model: base}", "{model: a}", more=f"parameters: {{t: {SLERP_T}}}\n")),
    Reading(
        "read slerp slices", f"merge_method: slerp\nbase_model: base\ndtype: bfloat16\n{CIRCLE}", "llama-bf16-sharded"
    ),
    Reading(
        "read model_stock",
        _models("model_stock", *(f"{{model: {one}}}" for one in "abc")),
        family="llama-kin",
        loose=True,
        why=ORDER,
    ),
    Reading(
        "read sce",
        _models("sce", *(f"{{model: {one}}}" for one in "abc"), more="parameters: {select_topk: 0.5}\n"),
        loose=True,
        why=ORDER,
    ),
    Reading(
        "read tokenizer union",
        _models("task_arithmetic", A, B, C, more="tokenizer_source: union\n"),
        family="llama-tokens",
    ),
    Reading(
        "read tokenizer union by hand",
        _models(
            "ties",
            _each("a", weight="0.5", density="0.53"),
            B,
            more="tokenizer: {source: union, pad_to_multiple_of: 53, tokens: {only: {source: a}, w3: {source: b}}}\n",
        ),
        family="llama-tokens",
    ),
    Reading(
        "read tokenizer base, moved",
        _models("task_arithmetic", C, _each("d", weight="0.4"), more="tokenizer_source: base\n"),
        family="llama-tokens",
    ),
    Reading(
        "read tokenizer base, added",
        _models("task_arithmetic", A, B, more="tokenizer_source: base\n"),
        family="llama-tokens",
    ),
    Reading("read nuslerp", _models("nuslerp", _each("a", weight="0.3"), _each("b", weight="0.6"), base=None)),
    Reading("read nuslerp with a base", _models("nuslerp", _each("a", weight="0.3"), _each("b", weight=GRADIENT))),
    Reading(
        "read multislerp",
        _models("multislerp", A, B, _each("c", weight="0.5"), base=None),
        loose=True,
        why=ORDER,
    ),
    Reading(
        "read multislerp with a base",
        _models("multislerp", A, _each("b", weight=GRADIENT), _each("c", weight="0.5")),
        loose=True,
        why=ORDER,
    ),
    Reading(
        "read karcher", _models("karcher", *(f"{{model: {one}}}" for one in "abcde"), base=None), loose=True, why=ORDER
    ),
    Reading(
        "read karcher base listed",
        _models("karcher", *(f"{{model: {one}}}" for one in ("base", "a", "b"))),
        loose=True,
        why=ORDER,
    ),
)
"""All of them; every bit must be equal."""
