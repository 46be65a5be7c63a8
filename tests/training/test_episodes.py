import pytest
import torch

from training.episodes import ClassPool, EpisodeConfig, transform_episode


@pytest.fixture
def pool() -> ClassPool:
    rng = torch.Generator().manual_seed(0)

    def classes(count: int, channels: int, first: int) -> list[torch.Tensor]:
        """Images whose first pixel names their class."""
        groups = [torch.randint(0, 256, (12, channels, 28, 28), generator=rng).byte() for _ in range(count)]
        for i, group in enumerate(groups):
            group[:, :, 0, 0] = first + i
        return groups

    return ClassPool({"grey": classes(15, 1, 0), "colour": classes(5, 3, 100)})


def test_support_and_queries_share_classes_but_no_image(pool, rng):
    config = EpisodeConfig(transform=False, mixed=0.0)
    for _ in range(10):
        episode = pool.draw(config, rng=rng)
        by_label = {
            int(label): name for label, name in zip(episode.support_labels, episode.support[:, 0, 0, 0], strict=True)
        }
        assert sorted(by_label) == list(range(episode.num_classes))
        assert len(set(map(float, by_label.values()))) == episode.num_classes
        for label, image in zip(episode.query_labels, episode.query, strict=True):
            assert image[0, 0, 0] == by_label[int(label)]
        rows = {tuple(image.flatten().tolist()) for image in episode.support}
        assert not any(tuple(image.flatten().tolist()) in rows for image in episode.query)


def test_sizes_keep_to_their_limits(pool, rng):
    config = EpisodeConfig(max_support=60, num_query=40, max_ways=12)
    for _ in range(30):
        episode = pool.draw(config, rng=rng)
        assert 2 <= episode.num_classes <= 12
        assert len(episode.support) <= max(60, episode.num_classes)
        assert episode.support.shape[1:] == episode.query.shape[1:] == (3, 28, 28)
        assert float(episode.support.min()) >= 0
        assert float(episode.support.max()) <= 1


def test_a_named_data_set_is_the_only_source(pool, rng):
    episode = pool.draw(EpisodeConfig(transform=False), rng=rng, name="colour")
    assert float(episode.support[:, 0, 0, 0].min() * 255) >= 99


def test_equal_seeds_give_equal_episodes(pool):
    a, b = (pool.draw(EpisodeConfig(), rng=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a.support, b.support)
    assert torch.equal(a.query_labels, b.query_labels)


def test_transformations_differ_between_episodes(pool, rng):
    images = pool.classes["grey"][0].float().expand(-1, 3, -1, -1) / 255
    results = [transform_episode(images, pool, rng=rng) for _ in range(12)]
    assert all(r.shape == images.shape for r in results)
    assert len({round(float(r.sum()), 3) for r in results}) > 9
