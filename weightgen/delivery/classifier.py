"""The profile of classifiers: one support example in five of each class is held back and must be recognised."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weightgen.condition import SupportSet
from weightgen.delivery.profile import Checks, Comparison, Trial
from weightgen.errors import SpecMismatch
from weightgen.request import GenerationRequest, RefitsTrunks, WeightGenerator, require_support
from weightgen.solve.refit import refit_each
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import predict_each

HOLD_BACK = 5
"""One support example in this many is held back, at least one of each class that has two."""


class Classifier:
    """The profile of a network whose highest output is the class."""

    name = "classifier"

    def check(self, request: GenerationRequest, state: State) -> Checks:
        """Whether the state loads, is finite and has an effect on the support set, or on noise if there is none."""
        return check_state(request.target, state, inputs=_probe(request))

    def hold_back(self, request: GenerationRequest) -> Trial | None:
        """A trial with one example in five of each class held back, drawn with the request's seed."""
        if request.condition.support is None:
            return None
        parts = hold_back(request.condition.support, rng=torch.Generator().manual_seed(request.seed))
        if parts is None:
            return None
        kept, inputs, labels = parts
        return Trial(replace(request, condition=replace(request.condition, support=kept)), inputs, labels)

    def compare(self, trial: Trial, states: Sequence[State], references: Sequence[WeightGenerator]) -> Comparison:
        """Which held-back examples each state gets right; a state with a fault gets none right."""
        target, nothing = trial.partial.target, torch.zeros(len(trial.answers), dtype=torch.bool)

        def is_right(logits: Tensor) -> Tensor:
            return logits.argmax(-1) == trial.answers

        generated = []
        for state in states:
            checks = check_state(target, state, inputs=trial.inputs)
            generated.append(nothing if checks.faults or checks.outputs is None else is_right(checks.outputs))
        made = _generate_each(references, replace(trial.partial, num_samples=1, options=None))
        logits = predict_each(target, made, trial.inputs) if made else ()
        return Comparison(generated, {r.name: is_right(found) for r, found in zip(references, logits, strict=True)})

    def why_no_trial(self) -> str:
        return "no class has two support examples, so none could be held back"


def check_state(target: Target, state: State, *, inputs: Tensor) -> Checks:
    """Whether a classifier's state has the properties "loads", "finite" and "has_effect".

    It has an effect if its logits for `inputs` (n, *input_shape) are finite, differ between inputs and differ from
    those of the default initialisation.
    """
    found = {"loads": False, "finite": False, "has_effect": False}
    try:
        target.spec.check(state)
    except SpecMismatch as error:
        return Checks(found, (str(error),))
    target.load(state)
    found["loads"] = True
    bad = [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        more = f", as do {len(bad) - 1} more" * (len(bad) > 1)
        return Checks(found, (f"{bad[0]!r} holds NaN or infinite values{more}",))
    logits, default = predict_each(target, [state, target.init_state(0)], inputs)
    if not torch.isfinite(logits).all():
        return Checks(found, ("the logits are not finite",))
    found["finite"] = True
    faults = []
    tolerance = 1e-6 * max(1.0, float(logits.abs().max()))
    if len(inputs) > 1 and float((logits - logits[:1]).abs().max()) <= tolerance:
        faults.append("the logits are the same for every input")
    if float((logits - default).abs().max()) <= tolerance:
        faults.append("the logits are those of the default initialisation")
    found["has_effect"] = not faults
    return Checks(found, tuple(faults), logits)


def hold_back(support: SupportSet, *, rng: torch.Generator) -> tuple[SupportSet, Tensor, Tensor] | None:
    """The support set without one in five examples of each class, and the inputs and labels of those examples.

    None if every class has only one example.
    """
    order = torch.randperm(len(support.labels), generator=rng)
    chosen = []
    for label, shots in enumerate(support.shots):
        members = order[support.labels[order] == label]
        chosen.append(members[: max(shots // HOLD_BACK, 1) if shots > 1 else 0])
    out = torch.cat(chosen).sort().values
    if len(out) == 0:
        return None
    rest = torch.ones(len(support.labels), dtype=torch.bool)
    rest[out] = False
    kept = replace(support, inputs=support.inputs[rest], labels=support.labels[rest])
    return kept, support.inputs[out], support.labels[out]


def _generate_each(references: Sequence[WeightGenerator], request: GenerationRequest) -> list[State]:
    """The first state of every reference; if all of them refit a trunk, they do so in one pass."""
    refitting = [r for r in references if isinstance(r, RefitsTrunks)]
    if request.condition.support is None or not references or len(refitting) < len(references):
        return [r.generate(request)[0] for r in references]
    support = require_support(request)
    return refit_each(request.target, [r.trunks(request)[0] for r in refitting], support)


def _probe(request: GenerationRequest) -> Tensor:
    """Inputs on which outputs are compared: the support set's, or noise if there is none."""
    if request.condition.support is not None:
        return request.condition.support.inputs
    return torch.rand(8, *request.target.input_shape, generator=torch.Generator().manual_seed(0))
