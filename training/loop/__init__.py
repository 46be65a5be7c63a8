"""The one loop that trains every generator: budget, learning rates, clipping, averages, evaluation, saving, resuming.

    settings.py     what a run is given: its budget, the course of its learning rates, how often it is saved
    recipe.py       what a method brings: parameters, losses of a step, and perhaps an evaluation
    run.py          a run under way, and `train`, which takes it to its end from wherever it was interrupted
    run_file.py     the file that a run is resumed from
    processes.py    several processes that train one model

A program calls `train` with a `Recipe`, `LoopSettings` and a folder. If it was interrupted, the same call goes on.
"""

from training.loop.processes import average_gradients, gather_states, join_processes
from training.loop.recipe import Group, Losses, Recipe
from training.loop.run import BEST, LAST, Run, train
from training.loop.run_file import read_weights
from training.loop.settings import LoopSettings, Span, budget_of

__all__ = [
    "BEST",
    "LAST",
    "Group",
    "LoopSettings",
    "Losses",
    "Recipe",
    "Run",
    "Span",
    "average_gradients",
    "budget_of",
    "gather_states",
    "join_processes",
    "read_weights",
    "train",
]
