"""The gate: what is generated is handed over only if it loads, works, and no reference does better.

Whether a reference does better is asked on examples that no candidate was made from: the profile of the weights holds
some back, every candidate is made from the rest and scored on those. A reference must win by more than one standard
error of the paired difference, or chance alone would often replace good weights: of k examples that only the reference
gets right and l that only the generated weights do, k - l > sqrt(k + l + 1). The 1 makes sure that one example alone
never decides. What is handed over is always made from all examples.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightgen.delivery.classifier import Classifier
from weightgen.delivery.profile import Comparison, Profile
from weightgen.errors import VerificationFailed, WeightgenError
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest, MakesMany, WeightGenerator
from weightgen.spec import State

CLASSIFIER = Classifier()


@dataclass(frozen=True, eq=False)
class VerifiedWeights:
    """A state that passed the gate."""

    request: GenerationRequest
    state: State
    source: str
    """Name of the generator or reference that made it."""
    report: dict[str, Any]
    """JSON: what was checked and found; the same for the same request."""

    @property
    def is_fallback(self) -> bool:
        """Whether a reference stands in for what was generated."""
        return self.report["fell_back"]


def generate_verified(
    generator: WeightGenerator,
    request: GenerationRequest,
    *,
    references: Sequence[WeightGenerator] | None = None,
    fallback: bool = True,
    profile: Profile = CLASSIFIER,
) -> list[VerifiedWeights]:
    """The generated weights, each sample through the gate; or the best reference's where one wins.

    `references` are what the answer is compared with, a random trunk under a solved head by default; the first sample
    of each counts. Without `fallback`, a reference that wins raises VerificationFailed.
    """
    against = [RandomTrunkRidge()] if references is None else references
    (verified,) = generate_verified_many(generator, [request], [against], [fallback], profile=profile)
    if isinstance(verified, WeightgenError):
        raise verified
    return verified


def generate_verified_many(
    generator: WeightGenerator,
    requests: Sequence[GenerationRequest],
    references: Sequence[Sequence[WeightGenerator]],
    fallbacks: Sequence[bool],
    *,
    profile: Profile = CLASSIFIER,
    on_generated: Callable[[], None] = lambda: None,
) -> list[list[VerifiedWeights] | WeightgenError]:
    """For each of several requests what `generate_verified` gives, or raises, for it alone.

    Those that the generator can make in one pass are. `on_generated` is called between generation and the gate.
    """
    states = generate_all(generator, requests)
    on_generated()
    trials = [profile.hold_back(request) for request in requests]
    partial = iter(generate_all(generator, [trial.partial for trial in trials if trial is not None]))
    outcomes: list[list[VerifiedWeights] | WeightgenError] = []
    for request, against, fallback, trial, generated in zip(
        requests, references, fallbacks, trials, states, strict=True
    ):
        try:
            comparison = None if trial is None else profile.compare(trial, next(partial), against)
            verdicts = [_score_sample(comparison, sample, profile) for sample in range(len(generated))]
            outcomes.append(
                [
                    _verify(generator.name, request, state, profile, against, fallback, held)
                    for state, held in zip(generated, verdicts, strict=True)
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


def _verify(
    name: str,
    request: GenerationRequest,
    state: State,
    profile: Profile,
    references: Sequence[WeightGenerator],
    fallback: bool,
    held: dict[str, Any],
) -> VerifiedWeights:
    """The state through the gate, or the reference that takes its place."""
    checks, winner = profile.check(request, state), held.get("winner")
    if not checks.faults and winner is None:
        report = {"passed": True, "fell_back": False, "source": name, "sentence": _describe_pass(name, held)}
        return VerifiedWeights(request, state, name, {**report, **checks.found, "held_back": held})
    sentence = "; ".join(checks.faults) if checks.faults else _describe_loss(name, winner, held)
    chosen = winner or _best_reference(held, references)
    if not fallback or chosen is None:
        raise VerificationFailed(f"weights generated by {name!r} did not pass the gate: {sentence}")
    return _fall_back(next(r for r in references if r.name == chosen), request, profile, held, sentence)


def _score_sample(comparison: Comparison | None, sample: int, profile: Profile) -> dict[str, Any]:
    if comparison is None:
        return {"examples": 0, "reason": profile.why_no_trial()}
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
    reference: WeightGenerator, request: GenerationRequest, profile: Profile, held: dict[str, Any], sentence: str
) -> VerifiedWeights:
    state = reference.generate(replace(request, num_samples=1, options=None))[0]
    checks = profile.check(request, state)
    if checks.faults:
        raise VerificationFailed(f"{sentence}; and the reference {reference.name!r} is no better: {checks.faults[0]}")
    report = {"passed": False, "fell_back": True, "source": reference.name, "sentence": sentence}
    return VerifiedWeights(request, state, reference.name, {**report, **checks.found, "held_back": held})


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
