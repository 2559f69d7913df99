"""A family of models as a program opens it: a base and its experts, checked to fit together, which show themselves.

In: directories, names on the hub, modules of torch, state dicts. Out: a `Family`: where its models are, what should be
known of them, and how their task vectors lie to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.common.directories import TemporaryDirectory
from evomerge.common.errors import ConfigError
from evomerge.common.forms import checked
from evomerge.common.names import unknown
from evomerge.common.progress import WRITTEN, Progress, Silent
from evomerge.common.shown import Shown
from evomerge.inspection.geometry import Geometry, measure
from evomerge.models.buffers import CHOICES as BUFFERS
from evomerge.runs.choices import load_choice
from evomerge.runs.families import Model, take_family
from evomerge.task_vectors.stores import CHOICES as STORES


class Family:
    """A base and the experts that were tuned from it, checked to fit together.

    Args:
        base: a directory, `owner/name` on the hub, or a module of torch; a module is copied, and so are state dicts.
        experts: by name, each a directory, a name on the hub, a module or a state dict; or as keywords.
        auto_class: the transformers class that loads the base: AutoModel, AutoModelForCausalLM ...
        tokenizer: of a base that is a module, for a fitness that needs one; or its image processor.
        device: for the live model: cpu, cuda:0; auto is the first CUDA device, or where a module is.
        device_map: auto spreads a base that evomerge loads over all GPUs; or the device of each module, by its name.
        compute: the dtype to compute in: float32, bfloat16; auto is the fastest one here that holds the weights, which
            stay rounded to the dtype of the base; None for that one.
        place: where task vectors lie: device (of the model), host (in memory) or disk (mapped); auto is the first of
            them that has room, and on a CPU they are mapped.
        vocabulary: what becomes of experts with another number of tokens: refuse, base, shared or union.
        part: the module of the base that experts of another architecture are: language_model, say.
        dequantise: whether a quantised expert (fp8, say) is taken as the numbers that transformers makes of its codes.
        template: whose chat template, end token and generation config the merge is scored and written
            with: base, or the name of an expert.
        store: how task vectors are kept: auto, float32 or expert, which lose nothing; bfloat16, int8 or int4.
        buffers: floating buffers of a merge, such as the statistics of batch norm: base, average (over the experts), or
            recalibrate (taken anew of each candidate of a search).
        allow_missing: names and patterns of tensors that experts may lack.
        cache: the directory for task vectors; None for .cache/evomerge, or a temporary one for models in memory.
        progress: is told what goes on.

    Attributes:
        notes: what should be known of the models.

    Raises:
        EvomergeError: something cannot be read, or the models do not fit together.

    >>> import torch
    >>> import evomerge as em
    >>> base = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> tuned = {name: tensor + 0.1 for name, tensor in base.state_dict().items()}
    >>> em.Family(base, tuned=tuned).experts
    ['tuned']
    """

    @checked(
        auto_class="'AutoModel' or 'AutoModelForCausalLM'",
        device="'auto', 'cpu' or 'cuda:0'",
        device_map="'auto', {'model.layers': 'cuda:1', ...} or None",
        compute="'auto', 'float32' or None",
        place="'auto', 'device', 'host' or 'disk'",
        vocabulary="'refuse', 'base', 'shared' or 'union'",
        part="'language_model' or None",
        dequantise="True or False",
        template="'base' or 'mood'",
        store="'auto', 'int8' or 'int4'",
        buffers="'base', 'average' or 'recalibrate'",
        allow_missing="['lm_head.*']",
        cache="a directory, or None",
        progress=WRITTEN,
    )
    def __init__(
        self,
        base: Model,
        experts: Mapping[str, Model] | None = None,
        /,
        *,
        auto_class: str = "AutoModel",
        tokenizer: Any = None,
        device: str = "auto",
        device_map: str | Mapping[str, str | int] | None = None,
        compute: str | None = "auto",
        place: str = "auto",
        vocabulary: str = "refuse",
        part: str | None = None,
        dequantise: bool = False,
        template: str = "base",
        store: str = "auto",
        buffers: str = "base",
        allow_missing: Sequence[str] = (),
        cache: str | Path | None = None,
        progress: Progress | None = None,
        **named: Model,
    ) -> None:
        chosen = {
            "auto_class": auto_class,
            "device": device,
            "device_map": device_map,
            "compute": compute,
            "place": place,
            "vocabulary": vocabulary,
            "part": part,
            "dequantise": dequantise,
            "template": template,
        }
        if experts is not None and not (
            isinstance(experts, Mapping) and all(isinstance(name, str) for name in experts)
        ):
            raise ConfigError(
                f"{experts!r:.100} are no experts by name: write Family(base, {{'mood': 'models/mood'}})."
            )
        if store not in STORES:
            raise ConfigError(f"store: {unknown('choice', store, STORES)}")
        if buffers not in BUFFERS:
            raise ConfigError(f"buffers: {unknown('choice', buffers, BUFFERS)}")
        models = {**(experts or {}), **named}
        if cache is None and not all(isinstance(model, str | Path) for model in (base, *models.values())):
            self._kept = TemporaryDirectory()
            cache = self._kept.path
        places = {} if cache is None else {"cache": str(cache)}
        settings = load_choice(
            "model",
            "directories",
            {**chosen, "store": store, "buffers": buffers, "allow_missing": [*allow_missing] or None, **places},
        )
        self.opened = take_family(base, models, settings, tokenizer, progress or Silent())
        self.notes = self.opened.notes(allow_missing)

    @property
    def experts(self) -> list[str]:
        """Their names, in the order of the sum."""
        return list(self.opened.experts)

    @cached_property
    def geometry(self) -> Geometry:
        """Norms, cosines and signs of the task vectors over all parameters; reads all weights twice."""
        one = self.opened
        whole, *others = measure(one.base, list(one.experts.values()), one.parameters).values()
        for other in others:
            whole += other
        return whole

    def shown(self) -> Shown:
        """Return a table of the experts: where they are, how far from the base, and how like each other."""
        found, sources = self.geometry, self.opened.sources
        rows = [
            [
                name,
                str(path),
                f"{found.norms[k]:.4g}",
                f"{found.ratios[k]:.1%}",
                f"{found.changed[k]:.0%}",
                *(f"{c:.3f}" for c in found.cosines[k]),
            ]
            for k, (name, path) in enumerate(sources.experts.items())
        ]
        conflicts, chance = found.signs.shares
        signs = f"{conflicts:.0%} of what several experts changed has opposite signs (by chance {chance:.0%})"
        columns = ["", "", "norm", "of the base's", "changed", *(f"cosine {name}" for name in sources.experts)]
        notes = [signs, *self.notes] if found.signs.several else self.notes
        return Shown(f"{found.elements:,} parameters of {sources.base}", columns, rows, notes)

    def __repr__(self) -> str:
        return str(self.shown())

    def _repr_html_(self) -> str:
        return self.shown().html()
