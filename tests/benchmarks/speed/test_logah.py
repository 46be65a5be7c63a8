import pytest
import torch

from benchmarks.speed import logah as logah_speed
from benchmarks.speed.logah import make_model, measure_construction, measure_pairs


@pytest.mark.parametrize(
    ("name", "millions"), [("ViT-S", 22.1), ("ResNet-50", 25.6), ("GPT-2-small", 124.4), ("GPT-2-large", 774.0)]
)
def test_models_have_the_size_their_names_say(name, millions):
    pytest.importorskip("transformers", reason="needs the extra 'clip', which brings transformers")
    with torch.device("meta"):
        model = make_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_constructing_t_takes_little_memory():
    assert measure_construction()[1].is_met


def test_a_pair_is_predict_over_normal_in_the_same_rounds(monkeypatch):
    monkeypatch.setattr(logah_speed, "PAIRS", (("T", "tiny", 1e-9),))
    monkeypatch.setattr(logah_speed, "make_model", lambda name: torch.nn.Linear(4, 4))
    (ratio,) = measure_pairs(num_rounds=1)
    assert ratio.name == "logah: T on tiny, predict / normal_"
    assert ratio.value == pytest.approx(ratio.seconds["predict"] / ratio.seconds["normal_"])
    assert (ratio.aim, ratio.is_met) == ("<= 1e-09", False)
