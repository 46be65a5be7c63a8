import pytest

from weightgen.weight_dataset.sources import parse_run


@pytest.mark.parametrize(
    ("stem", "run_and_step"),
    [
        ("run7/step_100", ("run7", 100)),
        ("a/epoch=3-step=500", ("a", 500)),
        ("out/checkpoint-500/model", ("out/model", 500)),
        ("out/checkpoint-500/pytorch_model", ("out/pytorch_model", 500)),
        ("zoo/500", ("zoo", 500)),
        ("net-epoch10", ("net", 10)),
        ("resnet32", ("resnet32", 0)),
        ("model_3", ("model_3", 0)),
        ("step_5", (".", 5)),
    ],
)
def test_a_path_tells_its_training_run_and_step(stem, run_and_step):
    assert parse_run(stem) == run_and_step
