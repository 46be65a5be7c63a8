"""The forward pass through a module's twin and, if it fails, passes through the parts that it did not reach.

A part is traced by itself, on inputs guessed for it, and follows the part that was registered before it. The order of
operations inside a part is the true one; only the edges between parts are guessed.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from weightgen.graph.drafts import Draft
from weightgen.graph.trace import TRACE_ERRORS, Recorder
from weightgen.graph.twin import TwinMaker, guess_inputs
from weightgen.spec import StateSpec

MAX_GUESSES_OF_A_PART = 6

Names = Mapping[int, tuple[str, Tensor]]
"""id of a twin's tensor -> the name under which a node owns it, and the tensor."""


def trace(
    module: nn.Module, spec: StateSpec, entries: Mapping[str, Tensor], inputs: tuple[Any, ...] | None
) -> tuple[list[Draft], list[str]]:
    """Drafts of the nodes of a module, which end with the output if the module could be traced; and notes."""
    maker = TwinMaker()
    try:
        twin = maker.copy(module)
        guesses = [(maker.copy(inputs), {})] if inputs is not None else guess_inputs(twin)
    except (TypeError, ValueError, AttributeError) as fault:
        return [Draft("input", "input", [])], [f"the module could not be traced: {_first_line(fault)}"]
    names: dict[int, tuple[str, Tensor]] = {}
    for t in spec.tensors:
        meta = maker.tensors.get(id(entries[t.name]))
        if meta is not None:
            names.setdefault(id(meta), (t.tied_to or t.name, meta))
    recorder, reason = _run_first(twin, guesses, names, maker.tensors)
    if not reason:
        assert recorder is not None
        asked = ", ".join(recorder.guesser.asked)
        notes = [f"the forward pass depends on values of tensors ({asked}), which were guessed"] if asked else []
        return recorder.book.drafts, notes
    drafts = recorder.book.drafts if recorder else [Draft("input", "input", [])]
    met = set(recorder.book.owner) if recorder else set()
    end = _run_parts(twin, drafts, len(drafts) - 1, met, names, maker.tensors)
    drafts.append(Draft("output", "output", [end]))
    return drafts, [f"the forward pass broke off ({reason}); parts it had not reached follow one by one, as registered"]


def _run_first(
    part: nn.Module, guesses: Iterable[tuple[Any, Any]], names: Names, twins: Mapping[int, Tensor]
) -> tuple[Recorder | None, str]:
    """The first pass that runs to the end; else the one that came furthest, and why it failed."""
    best: Recorder | None = None
    reason = "no input could be guessed; give example_inputs"
    for args, kwargs in guesses:
        recorder = Recorder(names, twins)
        try:
            recorder.run(part, args, kwargs)
        except TRACE_ERRORS as fault:
            if best is None or len(recorder.book.owner) > len(best.book.owner):
                best, reason = recorder, f"{type(fault).__name__}: {_first_line(fault)}"
        else:
            return recorder, ""
    return best, reason


def _run_parts(
    module: nn.Module, drafts: list[Draft], end: int, met: set[str], names: Names, twins: Mapping[int, Tensor]
) -> int:
    """Add the drafts of the children that were not reached, each behind the one before; returns the last node."""
    for child in module.children():
        own = {id(t): names[id(t)] for t in (*child.parameters(), *child.buffers()) if id(t) in names}
        missing = {name for name, _ in own.values()} - met
        if not missing:
            continue
        reason = "some of it was met"
        if len(missing) == len(own) and type(child).forward is not nn.Module.forward:
            recorder, reason = _run_first(child, islice(guess_inputs(child), MAX_GUESSES_OF_A_PART), own, twins)
            if not reason and recorder is not None and recorder.book.owner:
                end = _append(drafts, end, recorder.book.drafts, met)
        if reason:
            end = _run_parts(child, drafts, end, met, names, twins)
    return end


def _append(drafts: list[Draft], end: int, part: list[Draft], met: set[str]) -> int:
    """Add a part whose input is node `end`; returns the node that is its output."""
    shift = len(drafts) - 1
    *body, output = part
    for draft in body[1:]:
        draft.sources = [source + shift if source else end for source in draft.sources]
        met.update(name for name, _, _ in draft.tensors)
        drafts.append(draft)
    return max((source + shift for source in output.sources if source), default=len(drafts) - 1)


def _first_line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0][:200]
