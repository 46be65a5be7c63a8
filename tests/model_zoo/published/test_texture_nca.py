"""The texture automaton: one step by hand, what may move, and what the published ones paint."""

import itertools

import pytest
import torch

from model_zoo.published.texture_nca import TextureNca, TextureZoo, grow, load_texture_zoo, to_rgb
from tests.helpers.paths import shared_path
from weightgen.errors import NotFound
from weightgen.spec import StateSpec
from weightgen.weightspace.canonical import balance


def make_automaton(*, channels=3, hidden=5):
    torch.manual_seed(0)
    return TextureNca(channels=channels, hidden=hidden)


def make_spec(automaton):
    return StateSpec.from_module(automaton, TextureNca.AXES, arch="texture-nca")


def step_by_hand(state, grid, updated):
    """One step on a torus, cell by cell, neighbour by neighbour."""
    height, width = grid.shape[2:]
    after = grid.clone()
    for y, x in updated[0].nonzero().tolist():
        cell = grid[0, :, y, x]
        across, down, bend = torch.zeros_like(cell), torch.zeros_like(cell), -2 * cell
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            near = grid[0, :, (y + dy) % height, (x + dx) % width]
            across = across + dx * (2 - abs(dy)) / 8 * near
            down = down + dy * (2 - abs(dx)) / 8 * near
            bend = bend + (2 - abs(dy)) * (2 - abs(dx)) / 8 * near
        seen = torch.cat([cell, across, down, bend]).clamp(-2, 2)
        hidden = (state["layers.0.weight"] @ seen + state["layers.0.bias"]).clamp_min(0)
        change = (state["layers.1.weight"] @ hidden + state["layers.1.bias"]).clamp(-2, 2)
        after[0, :, y, x] = (cell + change).clamp(-2, 2)
    return after


def test_a_step_is_what_it_is_by_hand(rng):
    automaton = make_automaton()
    grid = 3 * torch.rand(1, 3, 4, 5, generator=rng) - 1.5
    updated = torch.rand(1, 4, 5, generator=rng) < 0.5
    with torch.no_grad():
        torch.testing.assert_close(
            automaton(grid, updated), step_by_hand(automaton.state_dict(), grid, updated), rtol=1e-5, atol=1e-5
        )


def test_hidden_units_may_be_reordered_and_scaled(rng):
    automaton = make_automaton()
    spec, state = make_spec(automaton), automaton.state_dict()
    assert spec.hidden == {"h": 5}
    grid = 2 * torch.rand(2, 3, 4, 4, generator=rng) - 1
    everywhere = torch.ones(2, 4, 4, dtype=torch.bool)
    expected = automaton(grid, everywhere)
    permuted = spec.permute(state, {"h": torch.randperm(5, generator=rng)})
    balanced = balance(state, spec, scalable=TextureNca.SCALABLE)
    for other in (permuted, balanced):
        assert not torch.equal(other["layers.0.weight"], state["layers.0.weight"])
        automaton.load_state_dict(other)
        torch.testing.assert_close(automaton(grid, everywhere), expected, rtol=1e-5, atol=1e-5)


def test_growth_is_the_rngs_alone_and_stays_in_bounds(make_rng):
    state = {name: 20 * t for name, t in make_automaton().state_dict().items()}
    grids = [grow(state, steps=20, size=8, rng=make_rng(seed), num_grids=2) for seed in (3, 3, 4)]
    assert torch.equal(grids[0], grids[1])
    assert not torch.equal(grids[0], grids[2])
    assert float(grids[0].abs().max()) == 2


@pytest.fixture(scope="module")
def zoo() -> TextureZoo:
    shared_path("checkpoints/texture_nca_133.safetensors")
    return load_texture_zoo()


def test_published_automata_paint_their_textures(zoo, make_rng):
    assert len(zoo.names) == len(zoo.states) == 133
    grids = {
        name: grow(zoo.states[zoo.names.index(name)], steps=64, size=32, rng=make_rng(0))
        for name in ("dots", "minecraft-mondrian")
    }
    assert all(float(to_rgb(grid).flatten(2).std(2).mean()) > 0.05 for grid in grids.values())
    dots, minecraft = (to_rgb(grid).mean() for grid in grids.values())
    assert dots > 0.65 and minecraft < 0.55  # dots on white paper; planks and stone


def test_without_the_shared_folder_the_zoo_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path))
    with pytest.raises(NotFound, match="texture_nca_133 is not there; set WEIGHTGEN_SHARED"):
        load_texture_zoo()
