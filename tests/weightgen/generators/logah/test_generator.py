import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model_zoo.architectures import build_target
from tests.helpers.modules_to_fill import Tiny
from tests.helpers.standins import make_request, make_support
from tests.helpers.tiny_generators import TINY_LOGAH
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption, CorruptFile, UnsupportedTask
from weightgen.files.checkpoint import encode_state, save_state
from weightgen.generators.d2nwg.method import D2nwgOptions
from weightgen.generators.logah.generator import SIZES, Logah, LogahConfig, new_logah
from weightgen.graph.arch_graph import ArchGraph, build_graph
from weightgen.init.fill import fill_module
from weightgen.request import GenerationRequest, WeightGenerator

INPUT = torch.zeros(1, 2, 5, 5)


@pytest.fixture(scope="module")
def graph() -> ArchGraph:
    return build_graph(Tiny(), INPUT)


@pytest.fixture(scope="module")
def generator() -> Logah:
    return new_logah(TINY_LOGAH, seed=0)


def test_the_same_module_generator_and_seed_give_the_same_bytes(generator, graph):
    first, second = (encode_state(dict(generator.predict(graph, seed=3))) for _ in range(2))
    assert first == second
    assert encode_state(dict(generator.predict(graph, seed=4))) == first  # nothing is drawn without noise
    noisy, again, other = (encode_state(dict(generator.predict(graph, seed=s, noise=0.3))) for s in (3, 3, 4))
    assert noisy == again != other != first


def test_noise_keeps_the_size_of_weights_and_leaves_vectors_alone(generator):
    graph = build_graph(nn.Sequential(nn.Linear(300, 400)), torch.zeros(1, 300))
    plain, noisy = (dict(generator.predict(graph, seed=0, noise=noise)) for noise in (0.0, 0.5))
    assert torch.equal(plain["0.bias"], noisy["0.bias"])
    assert torch.allclose(plain["0.weight"].norm(), noisy["0.weight"].norm(), rtol=0.02)
    shared = nn.functional.cosine_similarity(plain["0.weight"].flatten(), noisy["0.weight"].flatten(), dim=0)
    assert shared == pytest.approx(0.5**0.5, abs=0.02)
    with pytest.raises(BadOption, match="noise is 1"):
        next(generator.predict(graph, noise=1))


def test_init_fills_in_place_keeps_ties_and_touches_no_rng_nor_mode(generator):
    module = Tiny()
    module.norm.eval()
    before = {name: t.detach().clone() for name, t in module.state_dict().items()}
    identities = {name: (id(p), p.data_ptr()) for name, p in module.named_parameters(remove_duplicate=False)}
    modes = [part.training for part in module.modules()]
    rngs = (torch.get_rng_state().tolist(), random.getstate())
    report = fill_module(generator, module, seed=1)
    assert rngs == (torch.get_rng_state().tolist(), random.getstate())
    assert modes == [part.training for part in module.modules()]
    assert identities == {name: (id(p), p.data_ptr()) for name, p in module.named_parameters(remove_duplicate=False)}
    assert module.out.weight is module.into.weight
    changed = {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {row.name for row in report.rows if row.source in ("predicted", "tied")}
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in module.parameters())


def test_init_gives_what_predict_yields_and_forward_makes(generator):
    module = Tiny()
    graph = build_graph(module)
    fill_module(generator, module, graph=graph)
    state, made = module.state_dict(), generator(graph)
    predicted = dict(generator.predict(module))
    assert predicted.keys() == made.keys()
    for name, tensor in predicted.items():
        assert torch.equal(tensor, state[name]), name
        assert torch.allclose(tensor, made[name], atol=1e-5), name


TOLD = LogahConfig(rank=4, num_layers=1, dim=16, num_heads=4, encoding_dim=8, refinement_rates=(0.1,))


def test_what_it_is_told_changes_the_trunk_once_it_has_learnt_to_listen():
    generator, target = new_logah(TOLD, seed=0), build_target("cnn-w8-d2", num_classes=3)
    support, other = make_support(), make_support(seed=1)
    graph = build_graph(target.skeleton, torch.zeros(1, 1, 28, 28))
    plain, told = dict(generator.predict(graph)), dict(generator.predict(graph, support=support))
    assert all(torch.equal(plain[name], told[name]) for name in plain)  # zero before training
    torch.nn.init.normal_(generator.of_support.weight, generator=torch.Generator().manual_seed(0))
    told, elsewhere = (dict(generator.predict(graph, support=s)) for s in (support, other))
    assert not torch.equal(told["blocks.0.conv.weight"], plain["blocks.0.conv.weight"])
    assert not torch.equal(told["blocks.0.conv.weight"], elsewhere["blocks.0.conv.weight"])


def test_it_embeds_support_sets_if_it_was_told_any(generator):
    told = new_logah(TOLD, seed=0)
    embedded = told.embed(make_support(), arch="cnn")
    assert embedded.shape == (8,) and embedded.norm() == pytest.approx(1, abs=1e-5)
    assert told.digest_of("cnn") == told.digest_of("mlp") != new_logah(TOLD, seed=1).digest_of("cnn")
    with pytest.raises(UnsupportedTask, match="embeds none"):
        generator.embed(make_support(), arch="cnn")


def test_without_its_condition_it_is_neither_told_nor_refined():
    generator, target = new_logah(TOLD, seed=0), build_target("cnn-w8-d2", num_classes=3)
    request = make_request(target, make_support())
    (refined,), (plain,) = generator.generate(request), generator.without_condition().generate(request)
    graph = build_graph(target.skeleton, torch.zeros(1, 1, 28, 28))
    first = dict(generator.predict(graph))["blocks.0.conv.weight"]
    assert torch.equal(plain["blocks.0.conv.weight"], first) and not torch.equal(refined["blocks.0.conv.weight"], first)
    target.spec.check(refined)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding_dim": 8, "as_published": True}, "knows no support sets"),
        ({"refinement_rates": (0.1, 1.0)}, "refinement_rates"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(BadOption, match=message):
        LogahConfig(**settings)


def test_the_report_covers_every_tensor(generator):
    module = Tiny()
    report = fill_module(generator, module)
    assert [row.name for row in report.rows] == list(module.state_dict())
    sources = {row.name: row.source for row in report.rows}
    assert sources["out.weight"] == "tied" and sources["conv.weight"] == "predicted"
    assert {row.name for row in report.kept} == {
        *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "gamma")
    }
    assert all(row.why for row in report.kept)
    assert report.tensor_coverage == 6 / 7
    assert report.number_coverage == 1 - 6 / sum(p.numel() for p in module.parameters())


def test_a_trained_generator_would_train_in_all_its_parts(generator, graph):
    rng = torch.Generator().manual_seed(0)
    made = generator(graph)
    torch.stack([(t * torch.randn(t.shape, generator=rng)).sum() for t in made.values()]).sum().backward()
    dead = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    generator.zero_grad()
    assert dead == []


def test_query_key_and_value_get_weights_of_their_own(generator):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))

    weights = list(dict(generator.predict(build_graph(Attention(), torch.zeros(1, 3, 8)))).values())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (weights[a] - weights[b]).norm() > 0.1 * weights[a].norm()


def test_matrices_of_one_recurrent_layer_are_no_copies(generator):
    weights = [t for _, t in generator.predict(nn.LSTM(5, 5, 2, bidirectional=True)) if t.ndim == 2]
    shapes = {t.shape for t in weights}
    for shape in shapes:
        alike = [t for t in weights if t.shape == shape]
        for i in range(1, len(alike)):
            assert all((alike[i] - alike[j]).norm() > 0.1 * alike[i].norm() for j in range(i))


def test_layers_of_every_kind_are_predicted_at_their_exact_size(generator):
    layers = {
        nn.Conv1d(3, 5, 3): (1, 3, 9),
        nn.Conv3d(2, 3, (1, 2, 3)): (1, 2, 4, 4, 4),
        nn.ConvTranspose1d(4, 6, 3, groups=2): (1, 4, 7),
        nn.Conv2d(6, 9, (2, 3), groups=3): (1, 6, 5, 5),
        nn.Bilinear(3, 4, 5): None,
        nn.LSTM(3, 5, bidirectional=True): (4, 1, 3),
        nn.GroupNorm(2, 4): (1, 4, 3),
        nn.MultiheadAttention(8, 2): None,
        nn.Embedding(11, 3): None,
        nn.LayerNorm([3, 2]): (1, 3, 2),
    }
    for layer, shape in layers.items():
        inputs = None if shape is None else torch.zeros(shape)
        graph = build_graph(layer, inputs)
        predicted = dict(generator.predict(graph))
        parameters = dict(layer.named_parameters())
        assert predicted.keys() == parameters.keys(), layer
        assert all(predicted[name].shape == p.shape for name, p in parameters.items()), layer
        assert all(t.isfinite().all() for t in predicted.values())


def test_half_precision_is_single_precision_rounded(generator):
    plain = dict(generator.predict(build_graph(Tiny(), INPUT)))
    for name, tensor in generator.predict(build_graph(Tiny().bfloat16(), INPUT.bfloat16())):
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), plain[name], rtol=2**-7, atol=1e-5), name


def test_a_module_on_the_meta_device_is_refused_in_place_and_predicted_by_name(generator):
    with torch.device("meta"):
        module = Tiny()
    with pytest.raises(BadOption, match="has no place for numbers"):
        fill_module(generator, module)
    assert all(not tensor.is_meta for _, tensor in generator.predict(module))


@pytest.mark.parametrize("as_published", [False, True])
def test_a_saved_generator_predicts_the_same_bytes(tmp_path, graph, as_published):
    config = LogahConfig(rank=4, num_layers=1, dim=16, num_heads=4, as_published=as_published)
    generator = new_logah(config, seed=5)
    generator.save(tmp_path / "g.safetensors")
    loaded = Logah.load(tmp_path / "g.safetensors")
    assert loaded.config == config
    assert encode_state(dict(loaded.predict(graph))) == encode_state(dict(generator.predict(graph)))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "g.safetensors").read_bytes()


def test_damaged_and_foreign_files_are_refused(tmp_path, generator):
    manifest = {"format": "weightgen.generator", "method": "logah", "version": 1, "training": {}}
    save_state(tmp_path / "a", generator.state_dict(), manifest={**manifest, "config": {"rank": 3}})
    with pytest.raises(CorruptFile, match="do not fit its own configuration"):
        Logah.load(tmp_path / "a")
    save_state(tmp_path / "b", {}, manifest={**manifest, "version": 9})
    with pytest.raises(UnsupportedTask, match="version 9"):
        Logah.load(tmp_path / "b")


def test_a_tensor_wider_than_the_published_tables_is_kept_and_said_so():
    generator = new_logah(LogahConfig(rank=2, num_layers=1, dim=16, num_heads=4, as_published=True), seed=0)
    report = fill_module(generator, nn.Embedding(40_000, 3))
    assert [row.why for row in report.kept] == ["wider than the published decoder's 32,768 rows"]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_of_the_paper(size):
    config = SIZES[size]()
    with torch.device("meta"):
        ours, published = (Logah(SIZES[size](as_published=p)) for p in (False, True))
    assert (config.rank, config.num_layers, config.dim, config.num_heads) == {
        "T": (32, 3, 64, 8), "S": (90, 5, 128, 16), "B": (128, 5, 256, 16), "L": (256, 12, 256, 16)
    }[size]  # fmt: skip
    ours, published = (sum(p.numel() for p in g.parameters()) for g in (ours, published))
    assert published == {"T": 2_540_380, "S": 21_412_794, "B": 78_231_892, "L": 289_423_316}[size]
    assert ours < published


def test_a_config_that_cannot_be_built_is_refused():
    with pytest.raises(BadOption, match="dim is 18"):
        LogahConfig(dim=18, num_heads=4)


@pytest.fixture(scope="module")
def request_for_digits():
    target = build_target("cnn-tiny", num_classes=3)
    rng = torch.Generator().manual_seed(0)
    support = SupportSet(torch.rand(12, *target.input_shape, generator=rng), torch.arange(12) % 3, ("a", "b", "c"))
    return GenerationRequest(target, Condition(support=support))


def test_a_request_gets_a_trunk_from_the_graph_and_a_head_from_the_examples(generator, request_for_digits):
    target = request_for_digits.target
    (state,) = generator.generate(request_for_digits)
    target.spec.check(state)
    trunk = dict(generator.predict(target.skeleton))
    same = {name for name, tensor in trunk.items() if torch.equal(state[name], tensor)}
    assert same == trunk.keys() - set(target.spec.head)
    assert encode_state(generator.generate(request_for_digits)[0]) == encode_state(state)
    support = request_for_digits.condition.support
    assert (target.run(state, support.inputs).argmax(1) == support.labels).float().mean() > 0.6
    assert isinstance(generator, WeightGenerator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 2}, "num_samples must be 1"),
        ({"condition": Condition(support=make_support(), text="digits")}, "cannot use a description in words"),
        ({"condition": Condition()}, "needs a support set"),
        ({"options": D2nwgOptions()}, "does not take scheduler"),
    ],
)
def test_requests_it_cannot_honour_are_refused(generator, request_for_digits, change, message):
    with pytest.raises(UnsupportedTask, match=message):
        generator.check(replace(request_for_digits, **change))
