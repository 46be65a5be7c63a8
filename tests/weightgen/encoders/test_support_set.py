import torch

from tests.helpers.standins import make_support
from weightgen.encoders.support_set import SupportSetEncoder


def make_encoder() -> SupportSetEncoder:
    torch.manual_seed(0)
    return SupportSetEncoder(width=4, dim=16, heads=2, depth=1)


def test_prototypes_follow_the_order_of_the_classes_and_the_summary_does_not():
    encoder, support = make_encoder(), make_support(num_classes=4, shots=3)
    order = torch.tensor([2, 0, 3, 1])
    renamed = torch.argsort(order)[support.labels]  # class order[i] is class i now
    (before,), summary = encoder([support.inputs], [support.labels], [4])
    (after,), same = encoder([support.inputs], [renamed], [4])
    assert torch.allclose(after, before[order], atol=1e-5)
    assert torch.allclose(summary, same, atol=1e-5)


def test_sets_in_one_call_do_not_see_each_other():
    encoder = make_encoder()
    sets = [make_support(num_classes=k, shots=2, channels=c) for k, c in ((3, 1), (5, 3), (3, 3))]
    alone = [encoder([s.inputs], [s.labels], [s.num_classes]) for s in sets]
    prototypes, summaries = encoder([s.inputs for s in sets], [s.labels for s in sets], [3, 5, 3])
    for (p, s), together, summary in zip(alone, prototypes, summaries, strict=True):
        assert torch.allclose(p[0], together, atol=1e-5) and torch.allclose(s[0], summary, atol=1e-5)
