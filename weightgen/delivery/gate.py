"""The gate: what is generated is handed over only if it loads, works, and no reference does better.

Whether a reference does better is asked on labelled examples nobody conditioned on: one in five of each class is held
back, every candidate is made from the rest and scored on those. A reference must win by more than one standard error
of the paired difference, or chance alone would often replace good weights: of k examples that only the reference gets
right and l that only the generated weights do, k - l > sqrt(k + l + 1). The 1 sees to it that one example alone never
decides. What is handed over is always made from the whole support set.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightgen.condition import SupportSet
from weightgen.errors import SpecMismatch, VerificationFailed, WeightgenError
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest, MakesMany, RefitsTrunks, WeightGenerator, check_support
from weightgen.solve.refit import refit_each
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import predict_each

HOLD_BACK = 5
"""One support example in this many is held back, at least one of each class that has two."""


@dataclass(frozen=True, eq=False)
class VerifiedWeights:
    """A state that passed the gate."""

    state: State
    source: str
    """Name of the generator or reference that made it."""
    report: dict[str, Any]
    """JSON: what was checked and found; the same for the same request."""

    @property
    def is_fallback(self) -> bool:
        """Whether a reference stands in for what was generated."""
        return self.report["fell_back"]


@dataclass(frozen=True, eq=False)
class HeldBack:
    """Support examples kept out of the condition, (m, *input_shape) and (m,)."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Asked:
    """A request, and what its answer has to hold its own against."""

    request: GenerationRequest
    references: Sequence[WeightGenerator] | None = None
    """A random trunk under a solved head by default; the first sample of each counts."""
    fallback: bool = True
    """Whether a reference that wins is handed over; VerificationFailed stands in the way without."""


def generate_verified(
    generator: WeightGenerator,
    request: GenerationRequest,
    *,
    references: Sequence[WeightGenerator] | None = None,
    fallback: bool = True,
) -> list[VerifiedWeights]:
    """The generated weights, each sample through the gate; or the best reference's where one wins."""
    (verified,) = generate_verified_many(generator, [Asked(request, references, fallback)])
    if isinstance(verified, WeightgenError):
        raise verified
    return verified


def generate_verified_many(
    generator: WeightGenerator, asked: Sequence[Asked], *, on_generated: Callable[[], None] = lambda: None
) -> list[list[VerifiedWeights] | WeightgenError]:
    """For each of several requests what `generate_verified` gives, or raises, for it alone.

    Those that the generator can make in one pass are. `on_generated` is called between generation and the gate.
    """
    states = generate_all(generator, [each.request for each in asked])
    on_generated()
    compared = [_hold_back(each.request) for each in asked]
    partial = generate_all(generator, [found[0] for found in compared if found is not None])
    rest = iter(partial)
    outcomes: list[list[VerifiedWeights] | WeightgenError] = []
    for each, found, generated in zip(asked, compared, states, strict=True):
        references = (RandomTrunkRidge(),) if each.references is None else tuple(each.references)
        try:
            comparison = None if found is None else _compare(*found, next(rest), references)
            outcomes.append(
                [
                    _verify(generator.name, state, each, references, _score_sample(comparison, sample))
                    for sample, state in enumerate(generated)
                ]
            )
        except WeightgenError as error:
            outcomes.append(error)
    return outcomes


def generate_all(generator: WeightGenerator, requests: Sequence[GenerationRequest]) -> list[list[State]]:
    """What the generator makes of each request, of those that it can in one pass."""
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        group = generator.group_of(request) if isinstance(generator, MakesMany) else None
        groups.setdefault(("alone", i) if group is None else ("together", group), []).append(i)
    made: dict[int, list[State]] = {}
    for places in groups.values():
        if len(places) > 1 and isinstance(generator, MakesMany):
            found = generator.generate_many([requests[i] for i in places])
        else:
            found = [generator.generate(requests[i]) for i in places]
        made.update(zip(places, found, strict=True))
    return [made[i] for i in range(len(requests))]


def check_state(target: Target, state: State, *, inputs: Tensor) -> tuple[dict[str, Any], list[str]]:
    """What holds of a state ({"loads", "finite", "has_effect"}), and a sentence for everything that does not.

    It has an effect if its logits for `inputs` (n, *input_shape) are finite, differ between inputs and differ from
    those of the default initialisation.
    """
    report, faults, _ = _examine(target, state, inputs)
    return report, faults


def _examine(target: Target, state: State, inputs: Tensor) -> tuple[dict[str, Any], list[str], Tensor | None]:
    """What `check_state` says, and the logits, if it came to them."""
    report: dict[str, Any] = {"loads": False, "finite": False, "has_effect": False}
    try:
        target.spec.check(state)
    except SpecMismatch as error:
        return report, [str(error)], None
    target.load(state)
    report["loads"] = True
    bad = [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        more = f", as do {len(bad) - 1} more" * (len(bad) > 1)
        return report, [f"{bad[0]!r} holds NaN or infinite values{more}"], None
    logits, default = predict_each(target, [state, target.init_state(0)], inputs)
    if not torch.isfinite(logits).all():
        return report, ["the logits are not finite"], None
    report["finite"] = True
    faults = []
    tolerance = 1e-6 * max(1.0, float(logits.abs().max()))
    if len(inputs) > 1 and float((logits - logits[:1]).abs().max()) <= tolerance:
        faults.append("the logits are the same for every input")
    if float((logits - default).abs().max()) <= tolerance:
        faults.append("the logits are those of the default initialisation")
    report["has_effect"] = not faults
    return report, faults, logits


def hold_back(support: SupportSet, *, rng: torch.Generator) -> tuple[SupportSet, HeldBack] | None:
    """The support set without one in five examples of each class, and those; None if every class has only one."""
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
    return kept, HeldBack(inputs=support.inputs[out], labels=support.labels[out])


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Correct answers on the held-back examples: bool (m,) for each generated sample and each reference."""

    generated: list[Tensor]
    references: dict[str, Tensor]


def _hold_back(request: GenerationRequest) -> tuple[GenerationRequest, HeldBack] | None:
    """The request without the examples that are held back, and those; None if none can be."""
    if request.condition.support is None:
        return None
    parts = hold_back(request.condition.support, rng=torch.Generator().manual_seed(request.seed))
    if parts is None:
        return None
    return replace(request, condition=replace(request.condition, support=parts[0])), parts[1]


def _compare(
    partial: GenerationRequest, held: HeldBack, states: Sequence[State], references: Sequence[WeightGenerator]
) -> _Comparison:
    def correct(logits: Tensor) -> Tensor:
        return logits.argmax(-1) == held.labels

    def correct_if_sound(state: State) -> Tensor:
        _, faults, logits = _examine(partial.target, state, held.inputs)
        return torch.zeros(len(held.labels), dtype=torch.bool) if faults or logits is None else correct(logits)

    made = _generate_each(references, replace(partial, num_samples=1))
    logits = predict_each(partial.target, made, held.inputs) if made else ()
    return _Comparison(
        generated=[correct_if_sound(state) for state in states],
        references={r.name: correct(found) for r, found in zip(references, logits, strict=True)},
    )


def _generate_each(references: Sequence[WeightGenerator], request: GenerationRequest) -> list[State]:
    """The first state of every reference, those that refit a trunk all at once."""
    refitting = [r for r in references if isinstance(r, RefitsTrunks)]
    support = request.condition.support
    if support is None or not references or len(refitting) < len(references):
        return [r.generate(request)[0] for r in references]
    check_support(request)
    return refit_each(request.target, [r.trunks(request)[0] for r in refitting], support)


def _verify(
    name: str, state: State, asked: Asked, references: Sequence[WeightGenerator], held: dict[str, Any]
) -> VerifiedWeights:
    """The state through the gate, or the reference that takes its place."""
    request = asked.request
    report, faults = check_state(request.target, state, inputs=_probe(request))
    report["held_back"] = held
    winner = held.get("winner")
    if not faults and winner is None:
        sentence = _describe_pass(name, held)
        return VerifiedWeights(
            state, name, {"passed": True, "fell_back": False, "source": name, "sentence": sentence, **report}
        )
    sentence = "; ".join(faults) if faults else _describe_loss(name, winner, held)
    chosen = winner or _best_reference(held, references)
    if not asked.fallback or chosen is None:
        raise VerificationFailed(f"weights generated by {name!r} did not pass the gate: {sentence}")
    return _fall_back(next(r for r in references if r.name == chosen), request, report, sentence)


def _score_sample(comparison: _Comparison | None, sample: int) -> dict[str, Any]:
    if comparison is None:
        return {"examples": 0, "reason": "no class has two support examples, so none could be held back"}
    correct, count = comparison.generated[sample], len(comparison.generated[sample])
    right = {name: int(other.sum()) for name, other in comparison.references.items()}
    held: dict[str, Any] = {
        "examples": count,
        "generated": int(correct.sum()) / count,
        "references": {name: n / count for name, n in right.items()},
        "winner": None,
    }
    # The best first; equal ones in the order they were given.
    for name in sorted(right, key=lambda name: -right[name]):
        margin = right[name] - int(correct.sum())
        error = math.sqrt(int((comparison.references[name] != correct).sum()) + 1)
        if margin > error:
            return {**held, "winner": name, "margin": margin / count, "standard_error": error / count}
    return held


def _best_reference(held: dict[str, Any], references: Sequence[WeightGenerator]) -> str | None:
    scores = held.get("references") or {r.name: 0.0 for r in references}
    return max(scores, key=lambda name: scores[name], default=None)


def _fall_back(
    reference: WeightGenerator, request: GenerationRequest, report: dict[str, Any], sentence: str
) -> VerifiedWeights:
    state = reference.generate(replace(request, num_samples=1))[0]
    checks, faults = check_state(request.target, state, inputs=_probe(request))
    if faults:
        raise VerificationFailed(f"{sentence}; and the reference {reference.name!r} is no better: {faults[0]}")
    told = {"passed": False, "fell_back": True, "source": reference.name, "sentence": sentence}
    return VerifiedWeights(state, reference.name, {**told, **checks, "held_back": report["held_back"]})


def _probe(request: GenerationRequest) -> Tensor:
    """Inputs to look at logits for: the support set's, or noise without one."""
    if request.condition.support is not None:
        return request.condition.support.inputs
    return torch.rand(8, *request.target.input_shape, generator=torch.Generator().manual_seed(0))


def _describe_pass(name: str, held: dict[str, Any]) -> str:
    if not held["examples"]:
        return f"{name!r} loads and works; {held['reason']}"
    return (
        f"{name!r} got {held['generated']:.1%} of {held['examples']} held-back support examples right "
        "and no reference did better by more than a standard error"
    )


def _describe_loss(name: str, winner: str | None, held: dict[str, Any]) -> str:
    assert winner is not None
    return (
        f"on {held['examples']} held-back support examples {winner!r} got {held['references'][winner]:.1%} right, "
        f"{name!r} {held['generated']:.1%}; a standard error is {held['standard_error']:.1%}"
    )
