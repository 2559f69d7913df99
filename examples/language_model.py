"""Merge experts of a language model, scored by lm-eval.

    python examples/language_model.py BASE EXPERT EXPERT task.yaml ...

A task is a name that lm-eval knows, or a task file; needs evomerge[lm]. What a model is scored on at the end are other
documents than those that guided the search.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import evomerge as em


def main(base: str, experts: Sequence[str], tasks: Sequence[str], out: Path, budget: int = 100) -> em.Result:
    family = em.Family(base, {Path(path).name: path for path in experts}, auto_class="AutoModelForCausalLM")
    print(family)
    candidate = em.Candidate(family, space="layer")
    named = {Path(task).stem: task for task in tasks}
    result = em.search(candidate, em.lm_eval(), named, budget=budget, items=32, run=out / "run")
    print(result, result.report(), sep="\n\n")
    result.save(out / "merged")
    return result


if __name__ == "__main__":
    base, *rest = sys.argv[1:]
    main(
        base,
        [each for each in rest if Path(each).is_dir()],
        [each for each in rest if not Path(each).is_dir()],
        Path("merged"),
    )
