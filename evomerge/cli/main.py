"""The command `evomerge`: a verb, then its arguments.

    evomerge search model=text searcher=cmaes space=layer budget=200
    evomerge search -m model=text searcher=cmaes,tpe seed=1,2,3
    evomerge merge runs/<name>/recipe.yaml merged/

A misspelt verb is answered with the near match; a user's mistake never ends in a traceback, and no text that a terminal
cannot show ends in one.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import evomerge
from evomerge.cli.common import explained, fail
from evomerge.common.names import nearest

VERBS = {
    "search": "find the coefficients with which experts are merged; the same command again resumes",
    "auto": "the same without settings: it chooses them, says which and why, and searches",
    "inspect": "look at base and experts before a search: what fits, what differs, how large the task vectors are",
    "evaluate": "score recipes, model directories, the base or an expert on a split of the items, and compare them",
    "compare": "run every method with its own weight, rank them, and test the best against task arithmetic",
    "merge": "build the merged model of a recipe as a directory that transformers loads",
    "export": "write a run's winner, any of its trials, or a step, as a recipe, as mergekit's YAML, or as JSON",
    "report": "draw a run, or several, as one HTML page",
}
"""Verb -> what it does; each is a module of `commands`, imported when it is asked for."""
HELP = f"""evomerge {evomerge.__version__}: finds the coefficients with which fine-tuned experts of one base are merged.

usage: evomerge VERB [arguments ...]         evomerge VERB --help says more

{chr(10).join(f"  {verb:<9} {what}" for verb, what in VERBS.items())}

  evomerge search experiment=smoke                     a complete search on tiny models, in seconds, without a download
  evomerge auto base mood topic --tasks mood.jsonl topic.jsonl      on your own models, without any settings
  evomerge search model=text space=layer budget=200    on the suite of `python scripts/build_suite.py text`
  evomerge search model.base=path/to/base 'model.experts=[path/to/a,path/to/b]' \\
      'fitness.tasks={{a: {{items: a.jsonl}}, b: {{items: b.jsonl}}}}'    on your own models
  evomerge search -m model=text searcher=cmaes,tpe seed=1,2,3          a sweep over searches

exit status: 0 done; 1 something of it is not (a run of a sweep, a model that does not fit); 2 refused, with the reason;
128 + signal when asked to stop (130 Ctrl-C, 138 SIGUSR1, 143 SIGTERM): the same command again goes on
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: those after the program's name; `sys.argv` when left out.
    """
    _replace_what_cannot_be_shown()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if given[0] == "--version":
        print(evomerge.__version__)
        return
    verb, *rest = given
    if verb not in VERBS:
        near = ["search"] if "=" in verb else nearest(verb, VERBS)
        hint = f" Did you mean 'evomerge {near[0]}'?" if near else f" There is {', '.join(VERBS)}."
        fail(f"evomerge has no verb '{verb}'.{hint}")
    if arguments is None:  # else this process is somebody else's
        _let_idle_threads_sleep()
        sys.path.insert(0, os.getcwd())  # what a user has written is found from here, as with `python -m`
    with explained("Run the same command again."):
        import_module(f"evomerge.cli.{verb}").main(rest)


def _let_idle_threads_sleep() -> None:
    """Let the threads of torch sleep while they wait for work, unless the user has said otherwise.

    Their library has them spin, which on small models takes as much processor time as the search itself, and on a busy
    machine makes everything slower. It reads this variable when torch is loaded, so a setting of torch cannot take its
    place. Only the command does so; whoever imports evomerge, or calls `main`, keeps the environment as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _replace_what_cannot_be_shown() -> None:
    """Let the streams of this command show `?` for a character that their encoding does not have (τ, ±, é)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
