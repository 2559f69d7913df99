"""Load a finished run, and plot it: python examples/look_back.py runs/mine plot.png (needs evomerge[plot])."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import evomerge as em


def main(run: Path, picture: Path) -> em.Result:
    result = em.load(run)
    print(result)
    values = [trial.values[0] if trial.values else np.nan for trial in result.trials]
    weights = result.coefficients["weight"]

    figure = Figure(figsize=(9, 3), layout="constrained")
    search, table = figure.subplots(1, 2)
    search.plot(values, ".", color="0.6", label="candidates")
    search.plot(np.fmax.accumulate(values), label="best so far")
    search.set(xlabel="candidate", ylabel="value on search items")
    search.legend()
    shown = table.imshow(np.asarray(weights), aspect="auto", cmap="RdBu_r", vmin=-1.5, vmax=1.5)
    table.set_xticks(range(len(weights.experts)), weights.experts)
    table.set_yticks(range(len(weights.groups)), weights.groups)
    figure.colorbar(shown, ax=table)
    figure.savefig(picture, dpi=120)
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
