"""Small graphs as the layers of graph networks take them."""

import torch

from weightgen.layers.graphormer import GraphInputs


def chain(num_nodes: int, *, seed: int = 0, max_distance: int = 5) -> GraphInputs:
    """A chain of nodes with a shortcut, and two tensors on every other node."""
    rng = torch.Generator().manual_seed(seed)
    places = torch.arange(num_nodes)
    distances = places[None] - places[:, None]
    distances = torch.where(distances < 0, -1, distances.clamp_max(max_distance))
    distances[0, 2:] = (distances[0, 2:] - 1).clamp_min(1)
    owners = places[::2].repeat_interleave(2)
    return GraphInputs(
        ops=torch.randint(4, (num_nodes,), generator=rng),
        degrees=torch.randint(1, 3, (num_nodes, 2), generator=rng),
        depth=distances[0],
        distances=distances,
        twins=torch.randint(3, (num_nodes,), generator=rng),
        roles=torch.randint(3, (len(owners),), generator=rng),
        shapes=torch.randint(1, 900, (len(owners), 4), generator=rng),
        siblings=torch.arange(len(owners)) % 2,
        owners=owners,
    )


def permute(graph: GraphInputs, order: torch.Tensor) -> GraphInputs:
    """The same graph with its nodes told in another order."""
    return graph._replace(
        ops=graph.ops[order],
        degrees=graph.degrees[order],
        depth=graph.depth[order],
        distances=graph.distances[order][:, order],
        twins=graph.twins[order],
        owners=order.argsort()[graph.owners],
    )
