"""The shared training loop: what it follows, what it keeps, and that an interrupted run ends in the same bits."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

import training.loop.run
from tests.helpers.paths import ROOT
from tests.helpers.toy_recipe import make_recipe, make_settings
from training.loop import BEST, LAST, Group, LoopSettings, Losses, Recipe, Run, Span, budget_of, read_weights, train
from training.loop.run_file import read_run
from weightgen.errors import BadOption, CorruptFile
from weightgen.files.checkpoint import load_state, save_state


def assert_same_run(a: Path, b: Path) -> None:
    """All tensors of two saved runs, and all they have counted but time, are the same."""
    (first, tensors), (second, others) = read_run(a), read_run(b)
    assert tensors.keys() == others.keys()
    for part in tensors:
        assert tensors[part].keys() == others[part].keys()
        assert all(torch.equal(tensors[part][name], others[part][name]) for name in tensors[part])
    assert all(first[key] == second[key] for key in ("settings", "steps", "running", "best", "record"))


# Budget and learning rate.


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    settings = LoopSettings(budget=Span(steps=100), warmup=10)
    rates = [settings.rate(2.0, steps=step, progress=step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(2 * 0.1) and rates[4] == pytest.approx(2 * 0.5, rel=1e-2)
    assert rates[50] == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_a_quarter_of_a_cosine_falls_to_the_floor():
    settings = LoopSettings(budget=Span(steps=100), warmup=1, fall="quarter cosine", floor=0.02)
    assert settings.rate(1.0, steps=0, progress=0.0) == 1.0
    assert settings.rate(1.0, steps=50, progress=0.5) == pytest.approx(0.02 + 0.98 * math.cos(math.pi / 4))
    assert settings.rate(1.0, steps=100, progress=1.0) == settings.rate(1.0, steps=105, progress=1.05)
    assert settings.rate(1.0, steps=100, progress=1.0) == pytest.approx(0.02)


def test_without_warmup_the_first_step_has_the_highest_rate():
    assert LoopSettings(budget=Span(steps=9), warmup=0).rate(1.0, steps=0, progress=0.0) == 1.0


def test_a_length_of_training_is_in_steps_or_in_minutes():
    assert Span(steps=4).share(1, 1e9) == 0.25 and Span(minutes=2).share(10**9, 30.0) == 0.25
    for steps, minutes in ((None, None), (1, 1.0), (0, None), (None, -1.0), (None, math.inf), (None, math.nan)):
        with pytest.raises(BadOption, match="expected one of the two, above 0"):
            Span(steps=steps, minutes=minutes)


def test_a_budget_is_given_by_one_of_two_options():
    default = Span(minutes=20)
    assert budget_of(minutes=None, steps=None, default=default) == default
    assert budget_of(minutes=3.0, steps=None, default=default) == Span(minutes=3.0)
    assert budget_of(minutes=None, steps=3, default=default) == Span(steps=3)
    with pytest.raises(BadOption, match="--minutes and --steps are both given"):
        budget_of(minutes=3.0, steps=3, default=default)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(BadOption, match="expected clip and accumulate above 0"):
        make_settings(clip=0.0)
    with pytest.raises(BadOption, match="warmup and evaluations of 0 or more"):
        make_settings(evaluations=-1)


# One step.


def two_slopes(small: float, large: float) -> Recipe:
    """Two scalars in groups of their own, whose gradients are given."""
    module = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1)), "b": nn.Parameter(torch.zeros(1))})
    groups = [Group([module["a"]], 1.0), Group([module["b"]], 1.0)]
    return Recipe(
        "two", module, groups, lambda *_: Losses({"a": (small * module["a"] + large * module["b"]).sum()}), {}
    )


@pytest.mark.parametrize(("by_group", "expected"), [(True, (0.5, 1.0)), (False, (0.5 / 100, 1.0))])
def test_gradients_are_clipped_group_by_group_or_together(by_group, expected):
    run = Run(two_slopes(0.5, 100.0), make_settings(clip=1.0, is_clipped_by_group=by_group))
    run.advance()
    for name, norm in zip("ab", expected, strict=True):
        gradient = run.parameters[name].grad
        assert gradient is not None and float(gradient) == pytest.approx(norm, rel=1e-3)


def test_a_step_without_a_finite_gradient_changes_nothing():
    run = Run(two_slopes(1.0, math.nan), make_settings(average=None))
    run.advance()
    assert run.steps == 1 and run.running == {} and not run.optimizer.state
    assert all(float(p.detach()) == 0 for p in run.parameters.values())


def test_groups_have_learning_rates_of_their_own():
    run = Run(make_recipe(), make_settings(steps=10))
    for _ in range(4):
        run.advance()
    expected = [run.settings.rate(rate, steps=3, progress=0.3) for rate in (1e-2, 3e-3)]
    assert [group["lr"] for group in run.optimizer.param_groups] == expected


def test_a_step_of_several_calls_follows_their_mean():
    slopes = iter([1.0, 3.0])
    module = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1))})
    recipe = Recipe(
        "mean", module, [Group([module["a"]], 1.0)], lambda *_: Losses({"a": (next(slopes) * module["a"]).sum()}), {}
    )
    run = Run(recipe, make_settings(accumulate=2, clip=100.0))
    run.advance()
    assert module["a"].grad is not None and float(module["a"].grad) == 2.0


@pytest.mark.parametrize("updates_unused", [False, True])
def test_parameters_without_a_part_in_a_step_rest_or_follow_their_momentum(updates_unused):
    module = nn.ParameterDict({"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))})

    def losses(steps: int, _progress: float, _rng: torch.Generator) -> Losses:
        return Losses({"one": module["a" if steps else "b"].sum()})

    run = Run(Recipe("turns", module, [Group(list(module.parameters()), 0.1)], losses, {}),
              make_settings(warmup=0, updates_unused=updates_unused))  # fmt: skip
    run.advance()
    before = float(module["b"].detach())
    run.advance()
    assert (float(module["b"].detach()) != before) == updates_unused


def test_the_average_follows_the_weights_and_takes_their_place_at_the_end(tmp_path):
    recipe, settings = make_recipe(), make_settings(steps=6, average=0.5, average_warmup=2)
    run = Run(recipe, settings)
    expected = {name: p.detach().clone() for name, p in run.parameters.items()}
    for step in range(1, 7):
        run.advance()
        decay = min(0.5, step / (step + 2))
        expected = {name: decay * expected[name] + (1 - decay) * p.detach() for name, p in run.parameters.items()}
    for name, value in run.average.items():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, run.parameters[name])
    trained = make_recipe()
    train(trained, settings, tmp_path)
    for name, value in trained.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    _, weights = read_weights(tmp_path / LAST)
    assert all(torch.equal(weights[name], value) for name, value in trained.module.state_dict().items())


def test_only_parameters_of_groups_are_trained():
    recipe = make_recipe()
    run = Run(Recipe("part", recipe.module, recipe.groups[:1], recipe.losses, {}), make_settings())
    assert list(run.parameters) == ["0.weight", "0.bias"] == list(run.average)
    other = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="groups hold parameters that the module does not"):
        Run(Recipe("other", recipe.module, [Group([other], 1.0)], recipe.losses, {}), make_settings())


# Evaluation and log.


def test_the_model_with_the_best_evaluation_is_kept(tmp_path):
    scores, seen = iter([3.0, 1.0, 2.0, 1.5]), []

    def evaluate() -> dict[str, float]:
        seen.append({name: value.clone() for name, value in recipe.module.state_dict().items()})
        return {"loss": next(scores), "accuracy": 0.5}

    lines: list[str] = []
    recipe = make_recipe(evaluate=evaluate)
    run = train(recipe, make_settings(steps=8, evaluations=4), tmp_path, report=lines.append)
    assert [entry["step"] for entry in run.log] == [2, 4, 6, 8] and run.best == 1.0
    manifest, weights = read_weights(tmp_path / BEST)
    assert manifest["steps"] == 4 and manifest["best"] == 1.0
    assert all(torch.equal(weights[name], value) for name, value in seen[1].items())
    assert lines[1] == "toy step 4 0.0 min, held-out: loss 1.000, accuracy 0.500"


def test_averaged_weights_are_evaluated_and_training_goes_on_with_the_others(tmp_path):
    run = Run(make_recipe(evaluate=lambda: {"loss": float(run.parameters["0.weight"].sum())}), make_settings())
    for _ in range(3):
        run.advance()
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    assert run.evaluate(tmp_path / BEST)["loss"] == float(run.average["0.weight"].sum())
    assert all(torch.equal(p, before[name]) for name, p in run.parameters.items())


def test_losses_are_logged_as_they_run(tmp_path):
    lines: list[str] = []
    run = train(make_recipe(), make_settings(steps=4, log_every=Span(steps=2)), tmp_path, report=lines.append)
    assert len(lines) == 2 and lines[0].startswith("toy step 2 0.0 min: error 1.") and ", size 0.000" in lines[0]
    assert run.summary()["steps"] == 4 and run.summary()["last"].keys() == {"error", "size"}


# Interruption.


@pytest.mark.parametrize("average", [None, 0.9])
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, average):
    settings = make_settings(steps=9, average=average, evaluations=3)
    recipes = [make_recipe(evaluate=lambda: {"loss": 0.0}) for _ in range(2)]
    train(recipes[0], settings, tmp_path / "whole")
    for until in (1, 4, 5, None):
        resumed = make_recipe(evaluate=lambda: {"loss": 0.0})
        run = train(resumed, settings, tmp_path / "parts", until=until)
        assert run.steps == (until or 9)
    assert_same_run(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST)
    states = recipes[0].module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_killed_process_leaves_a_whole_file_and_its_run_ends_in_the_same_bits(tmp_path, rng):
    steps, folder = 400, tmp_path / "killed"
    command = [sys.executable, "-m", "tests.helpers.toy_recipe", str(folder), str(steps)]
    for kill in range(2):
        process = subprocess.Popen(command, cwd=ROOT)
        seen = read_run(folder / LAST)[0]["steps"] if kill else 0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:  # until it has gone on from where it was, and a little longer
            if (folder / LAST).exists() and read_run(folder / LAST)[0]["steps"] > seen:
                break
            time.sleep(0.005)
        time.sleep(0.05 * float(torch.rand(1, generator=rng)))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        manifest, _ = read_run(folder / LAST)
        assert seen < manifest["steps"] < steps
        assert [path.name for path in folder.iterdir()] == [LAST]
    subprocess.run(command, check=True, cwd=ROOT)
    train(make_recipe(width=128), make_settings(steps), tmp_path / "whole")
    assert_same_run(folder / LAST, tmp_path / "whole" / LAST)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    train(make_recipe(), make_settings(), tmp_path, until=2)
    before = (tmp_path / LAST).read_bytes()
    run = Run(make_recipe(), make_settings())
    monkeypatch.setattr("weightgen.files.state_file.bytes_of", lambda tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.save(tmp_path / LAST)
    assert (tmp_path / LAST).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_time_spent_before_an_interruption_counts(tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    clock = SimpleNamespace(perf_counter=lambda: 3.0 * next(ticks), process_time=lambda: 2.0 * next(ticks))
    monkeypatch.setattr(training.loop.run, "time", clock)
    budget = Span(minutes=1)  # the clock moves by 6 seconds a step
    first = train(make_recipe(), make_settings(budget=budget), tmp_path, until=4)
    assert (first.steps, first.seconds) == (4, 24.0)
    second = train(make_recipe(), make_settings(budget=budget), tmp_path)
    assert (second.steps, second.seconds) == (10, 60.0) and second.cpu_seconds > first.cpu_seconds
    third = train(make_recipe(), make_settings(budget=budget), tmp_path)
    assert (third.steps, third.seconds) == (10, 60.0)


def test_a_run_of_other_settings_or_processes_is_not_continued(tmp_path):
    train(make_recipe(), make_settings(), tmp_path, until=1)
    with pytest.raises(BadOption, match=r"holds a run with other settings \(loop.clip, recipe.width\); give another"):
        train(make_recipe(settings={"width": 9}), make_settings(clip=2.0), tmp_path)
    with pytest.raises(BadOption, match="begun with another number of processes than 2"):
        Run(make_recipe(), make_settings(), world_size=2).load(tmp_path / LAST)
    often = make_settings(save_every=Span(steps=1), log_every=Span(steps=1))
    assert train(make_recipe(), often, tmp_path, until=2, report=lambda line: None).steps == 2


def test_a_file_that_is_no_run_is_refused(tmp_path):
    save_state(tmp_path / LAST, {"a": torch.zeros(1)}, manifest={"steps": 3})
    with pytest.raises(CorruptFile, match="not the file of a training run"):
        train(make_recipe(), make_settings(), tmp_path)


def test_what_a_recipe_records_comes_back(tmp_path):
    train(make_recipe(record={"before": 7}), make_settings(), tmp_path, until=1)
    other = make_recipe(record={"before": 0})
    train(other, make_settings(), tmp_path)
    assert other.record == {"before": 7}


# Several processes.


def _train_together(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    together = {"rank": rank, "world_size": 2, "report": lambda line: None}
    settings = make_settings(evaluations=2, save_every=Span(minutes=1e-9))
    for name, stops in (("whole", [None]), ("parts", [3, None])):
        for until in stops:
            recipe = make_recipe(evaluate=lambda: {"loss": 0.0})
            run = train(recipe, settings, Path(folder) / name, until=until, **together)
        save_state(f"{folder}/{name}-{rank}.safetensors", recipe.module.state_dict())
    save_state(f"{folder}/clock-{rank}.safetensors", {"seconds": torch.tensor(run.seconds)})
    torch.distributed.destroy_process_group()


def test_processes_train_one_model_on_draws_of_their_own_and_resume(tmp_path):
    multiprocessing.spawn(_train_together, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    found = [load_state(tmp_path / f"{name}-{rank}.safetensors") for name in ("whole", "parts") for rank in (0, 1)]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)
    rngs = read_run(tmp_path / "whole" / LAST)[1]["rng"]
    assert len(rngs) == 2 and not torch.equal(rngs["0"], rngs["1"])
    clocks = [load_state(tmp_path / f"clock-{rank}.safetensors")["seconds"] for rank in (0, 1)]
    assert torch.equal(*clocks)
