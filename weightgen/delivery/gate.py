"""The gate: generated weights are handed over only if they load, work, and no reference does better.

References are compared on examples that no candidate was made from: the profile of the weights holds some examples
back, every candidate is made from the rest, and all are scored on the held-back ones. A reference must win by more than
one standard error of the paired difference, or chance alone would often replace good weights. If only the reference
gets k examples right, and only the generated weights get l right, it wins if k - l > sqrt(k + l + 1). Because of the 1,
one example alone never decides. The weights that are handed over are always made from all examples.
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
    """JSON: what was checked, and the results; equal requests give equal reports."""

    @property
    def is_fallback(self) -> bool:
        """Whether a reference replaces the generated weights."""
        return self.report["fell_back"]


def generate_verified(
    generator: WeightGenerator,
    request: GenerationRequest,
    *,
    references: Sequence[WeightGenerator] | None = None,
    fallback: bool = True,
    profile: Profile = CLASSIFIER,
) -> list[VerifiedWeights]:
    """The generated weights, each sample through the gate, or the best reference's weights if one wins.

    `references` are compared with the generated weights; the default is a random trunk under a solved head. Only the
    first sample of each counts. Without `fallback`, VerificationFailed is raised if a reference wins.
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
    """For each of several requests, what `generate_verified` would return or raise for it alone.

    Requests that the generator can serve together are made in one pass. `on_generated` is called between generation and
    the gate.
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
    """The states for each request; requests that the generator can serve together are made in one pass."""
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
    """The state after the gate, or the reference that replaces it."""
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
    # The best first; ties keep the order in which they were given.
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
