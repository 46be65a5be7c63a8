"""Computations written by hand, found among the nodes recorded so far: a norm, an activation, the scores of attention.

A node is given by its number in `drafts`. A chain is a path of nodes without tensors, all from a given set of calls.
"""

from collections.abc import Sequence

from weightgen.graph import rules
from weightgen.graph.drafts import Draft

_SCALE_CALLS = (
    rules.POOLINGS
    | rules.SUMS
    | frozenset(("sqrt", "rsqrt", "pow", "__pow__", "square", "abs", "norm", "reciprocal", "mul"))
)
_ELEMENT_CALLS = (rules.ACTIVATIONS | rules.SUMS | rules.PRODUCTS | {"activation"}) - {"softmax", "where"}
_SCORE_CALLS = rules.SUMS | rules.PRODUCTS | frozenset(("softmax", "_softmax", "matmul", "tanh"))


def find_norm(drafts: Sequence[Draft], factors: Sequence[int]) -> tuple[str, int] | None:
    """Find x / sqrt(mean(x^2)) in a product of two factors: `rms_norm` and the node of x.

    If x is y without its mean: `layer_norm` and the node of y. None if there is no norm.
    """
    for node, scale in (tuple(factors), tuple(factors)[::-1]):
        chain, outside = _walk(drafts, scale, _SCALE_CALLS, until=node)
        calls = {drafts[i].call for i in chain}
        is_root = calls & {"sqrt", "rsqrt"} and calls & rules.POOLINGS
        if not (is_root or calls & {"std", "norm", "linalg_vector_norm", "vector_norm"}):
            continue
        inner = drafts[node]
        if inner.call in ("sub", "__sub__") and not inner.tensors:
            means = [i for i in inner.sources if drafts[i].call == "mean"]
            sources = [i for i in inner.sources if i not in means]
            if len(means) == 1 and len(sources) == 1 and outside <= {node, *sources}:
                return "layer_norm", sources[0]
        if outside == {node}:
            return "rms_norm", node
    return None


def find_activation(drafts: Sequence[Draft], parts: Sequence[int]) -> int | None:
    """The node of x if the parts are x and a function of x, by element: GELU and SiLU written out; else None."""
    for node, factor in (tuple(parts), tuple(parts)[::-1]):
        _, outside = _walk(drafts, factor, _ELEMENT_CALLS, until=node)
        if outside == {node}:
            return node
    return None


def find_scores(drafts: Sequence[Draft], node: int) -> list[int] | None:
    """The nodes that q, k, masks and scales come from if the node is softmax(q k^T); None if it is not."""
    if node < 0 or drafts[node].call not in ("softmax", "_softmax"):
        return None
    chain, outside = _walk(drafts, node, _SCORE_CALLS)
    return sorted(outside) if any(drafts[i].call == "matmul" for i in chain) else None


def _walk(drafts: Sequence[Draft], start: int, calls: frozenset[str], *, until: int = -1) -> tuple[set[int], set[int]]:
    """Nodes without tensors, of these calls, that lead from `until` to `start`; and the nodes that lead to those."""
    chain: set[int] = set()
    outside: set[int] = set()
    waiting = [start]
    while waiting and len(chain) < 32:
        node = waiting.pop()
        draft = drafts[node]
        if node != until and draft.call in calls and not draft.tensors and not draft.reads:
            if node not in chain:
                chain.add(node)
                # The product is that of q and k; how they were made does not matter.
                waiting.extend(() if draft.call == "matmul" else draft.sources)
                outside.update(draft.sources if draft.call == "matmul" else ())
        else:
            outside.add(node)
    return chain, outside - chain
