import torch

from weightgen.layers.place_embedding import PlaceEmbedding


def test_places_a_little_apart_differ_little_and_far_apart_like_random_vectors():
    torch.manual_seed(0)
    embedding = PlaceEmbedding(64, 256).requires_grad_(False)
    place = torch.rand(1, 1, 64)
    same, near, far = (embedding(place + shift * torch.randn(1, 1, 64))[0, 0] for shift in (0, 0.01, 2.0))
    assert torch.cosine_similarity(same, near, 0) > 0.9
    assert abs(torch.cosine_similarity(same, far, 0)) < 0.3
