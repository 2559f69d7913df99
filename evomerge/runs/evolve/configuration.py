"""A configuration of mergekit-evolve (0.1.5) as the settings of a search, with an account of what becomes of it.

In: the YAML, and the options of the command that ran it. Out: settings as the command line takes them, and for each
key what was taken over, or what is otherwise and why. mergekit-evolve maximises scores on the documents on which it
reports them; here the three splits are disjoint, and public test splits are refused (`fitness/lm_eval/documents.py`).
"""

from __future__ import annotations

from evomerge.recipes.mergekit.evaluate import flag
from evomerge.recipes.mergekit.nodes import Node, Notes, read_nodes
from evomerge.runs.evolve.account import Account
from evomerge.runs.evolve.genome import GENOME, HIGH, method_of, read_genome
from evomerge.runs.evolve.options import OPTIONS, Options
from evomerge.runs.evolve.tasks import read_tasks, read_template

TAKEN = ("max_fevals", "sigma0", "force_population_size", "random_seed", "timeout", "batch_size")
"""Options that are settings here."""
TOP = (
    *("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template"),
    *("fewshot_as_multiturn",),
)


def read_evolve(text: str, options: Options) -> Account:
    """Read a configuration.

    Args:
        text: the YAML.
        options: of the command that ran it.

    Raises:
        ConfigError: it is none, or asks for what evomerge cannot do; the message names the line.
    """
    root, notes, account = read_nodes(text), Notes(), Account()
    notes.unread(root, TOP, "a configuration of mergekit-evolve")
    genome, tasks = root.get("genome"), root.get("tasks")
    if genome is None or tasks is None:
        raise root.error("there must be genome and tasks: this is no configuration of mergekit-evolve")
    notes.unread(genome, GENOME, "a genome")
    base = read_genome(genome, account)
    read_tasks(root, tasks, options, account)
    read_template(root, base, account)
    _read_budget(genome, root, options, account)
    for name, value in options.given.items():
        if name not in TAKEN:
            account.tell(f"--{name.replace('_', '-')} {value}".rstrip(), OPTIONS[name])
    for note in notes.said:
        account.tell(*note.split(": ", 1))
    return account


def _read_budget(genome: Node, root: Node, options: Options, account: Account) -> None:
    """Take over bounds, the first step and how much is searched."""
    method, negative = method_of(genome), genome.get("allow_negative_weights")
    signs = bool(negative and flag(negative))
    low, high = (0.0, 1.0) if method in ("slerp", "linear") else (-HIGH if signs else 0.0, HIGH)
    if method in ("slerp", "linear"):
        why = "shares: from none to all of a model"
    else:
        why = "mergekit-evolve has no bounds" + ("" if signs else ", and takes the absolute value of a weight")
    account.take(f"allow_negative_weights: {str(signs).lower()}", {"space.bounds": {"weight": [low, high]}}, why)
    random_init = root.get("random_init")
    start = "densities begin at 0.5, not at 1" if method in ("ties", "dare_ties") else ""
    if random_init and flag(random_init):
        start = "random_init draws the first point; evomerge begins at equal weights"
    account.take("weights begin at 1/n", {"start": 0.5 if method == "slerp" else "1/K"}, start)
    sigma = options.number("sigma0", 1 / 6)
    account.take(
        f"--sigma0 {sigma:.3g}",
        {"searcher": "cmaes", "searcher.sigma": round(min(sigma / (high - low), 1.0), 6)},
        "as a share of the range",
    )
    count = int(options.number("max_fevals", 100))
    account.take(f"--max-fevals {count}", {"budget": count}, "exactly; mergekit-evolve ends with a generation")
    account.take(
        f"--random-seed {int(options.number('random_seed', 0))}",
        {"seed": int(options.number("random_seed", 0))},
        "of all that is drawn; mergekit-evolve does not seed CMA-ES",
    )
    if (size := options.number("force_population_size")) is not None:
        account.take(f"--force-population-size {size:g}", {"searcher.popsize": int(size)})
    if (seconds := options.number("timeout")) is not None:
        account.take(f"--timeout {seconds:g}", {"budget_hours": seconds / 3600})
    if (batch := options.number("batch_size")) is not None:
        account.take(f"--batch-size {batch:g}", {"fitness.batch_size": int(batch)})
