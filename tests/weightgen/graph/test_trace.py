"""A pass leaves everything as it was; and it ends."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers.graph_zoo import ALL, MODULES, Net, ops_of
from weightgen.graph.arch_graph import build_graph


@ALL
def test_the_module_and_every_random_generator_are_left_alone(name):
    module = MODULES[name]().train()
    before = {n: (t.clone(), id(t), t._version) for n, t in module.state_dict(keep_vars=True).items()}
    attributes = {n: dict(vars(m)) for n, m in module.named_modules()}
    seen: list[object] = []
    module.register_forward_hook(lambda *call: seen.append(call))
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    build_graph(module)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    assert seen == []
    for n, t in module.state_dict(keep_vars=True).items():
        assert torch.equal(t, before[n][0])
        assert (id(t), t._version, t.grad) == (*before[n][1:], None)
    for n, m in module.named_modules():
        assert vars(m).keys() == attributes[n].keys()
        assert all(m.__dict__[k] is v for k, v in attributes[n].items())
        assert m.training


def test_lists_counters_and_modules_in_closures_are_left_alone():
    hidden = nn.BatchNorm1d(5)  # not registered: only the closure knows it

    def count(m: Any, x: Tensor) -> Tensor:
        m.num_calls += 1
        m.seen.append(x)
        m.kept["last"] = hidden(m.linear(x))
        return m.kept["last"]

    net = Net(count, linear=nn.Linear(4, 5), seen=[], kept={}, num_calls=0)
    assert ops_of(build_graph(net)) == ["linear", "batch_norm"]
    assert (net.num_calls, net.seen, net.kept) == (0, [], {})
    assert torch.equal(hidden.running_mean, torch.zeros(5))  # pyright: ignore
    assert hidden.num_batches_tracked == 0
    assert hidden.training
