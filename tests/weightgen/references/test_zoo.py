from dataclasses import replace

import pytest
import torch

from model_zoo.architectures import build_target
from tests.helpers.standins import embed, make_support, make_zoo
from weightgen.errors import BadOption, CorruptFile, NotFound, UnsupportedTask
from weightgen.files.checkpoint import save_for_spec, save_state
from weightgen.files.storage import sha256_file, write_json
from weightgen.references.zoo import ReferenceZoo, build_reference_zoo
from weightgen.solve.refit import refit
from weightgen.target.predict import predict
from weightgen.target.trunk import take_trunk, trunk_spec


def write_zoo(folder, runs, *, change=lambda state: state):
    """A zoo folder: runs are (run_id, target, seed, dataset, test_accuracy, split); their states are changed."""
    specs = {}
    for run_id, target, seed, dataset, score, split in runs:
        specs[target.spec.digest()] = target.spec.to_json()
        (folder / "runs" / run_id).mkdir(parents=True)
        checkpoints = []
        for step in (0, 10):
            path = folder / "runs" / run_id / f"{step}.safetensors"
            save_for_spec(path, change(target.init_state(seed + step)), target.spec)
            checkpoints.append(
                {"step": step, "file": path.name, "sha256": sha256_file(path), "test_accuracy": score * step / 10}
            )
        write_json(
            folder / "runs" / run_id / "run.json",
            {
                "run_id": run_id,
                "arch": target.spec.arch,
                "spec": target.spec.digest(),
                "split": split,
                "seed": seed,
                "task": {"dataset": dataset, "classes": list(range(target.spec.config["num_classes"]))},
                "checkpoints": checkpoints,
            },
        )
    write_json(folder / "zoo.json", {"format": "weightgen.zoo", "version": 1, "specs": specs})


def build(folder, target, **options):
    def support_of(task):
        return make_support(num_classes=len(task["classes"]))

    return build_reference_zoo(folder, target, embed=embed, support_of=support_of, embedder="e", **options)


@pytest.fixture
def tiny():
    return {k: build_target("cnn-tiny", num_classes=k) for k in (3, 5)}


@pytest.fixture
def folder(tmp_path, tiny):
    three, five, other = tiny[3], tiny[5], build_target("cnn-tiny", in_channels=3, num_classes=3)
    write_zoo(
        tmp_path,
        [
            ("a", three, 1, "mnist", 0.9, "train"),
            ("b", five, 2, "mnist", 0.8, "train"),
            ("c", three, 3, "gtsrb", 0.4, "train"),
            ("d", three, 4, "gtsrb", 0.5, "test"),
            ("e", other, 5, "gtsrb", 0.5, "train"),
            ("f", five, 6, "mnist", 0.2, "train"),  # at chance: it learnt nothing
        ],
    )
    return tmp_path


def test_a_zoo_folder_gives_the_last_checkpoint_of_every_fitting_training_run(folder, tiny):
    zoo = build(folder, tiny[3], dtype=torch.float32)
    assert [r["run_id"] for r in zoo.runs] == ["c", "a", "b"]  # data sets take turns
    assert all(r["step"] == 10 for r in zoo.runs)
    assert torch.equal(zoo.trunk(0)["conv1.weight"], tiny[3].init_state(13)["conv1.weight"])
    assert zoo.embeddings.shape == (3, 49)
    assert ((zoo.leave_one_out > 0.5) & (zoo.leave_one_out < 1.5)).all()


def test_stored_trunks_compute_what_the_runs_did(folder, tiny):
    """Alignment to the first trunk reorders hidden units and changes no function."""
    zoo, support = build(folder, tiny[3], dtype=torch.float32), make_support()
    original = refit(tiny[3], take_trunk(tiny[3].init_state(11), tiny[3].spec), support)
    stored = refit(tiny[3], zoo.trunk(1), support)
    a, b = predict(tiny[3], original, support.inputs), predict(tiny[3], stored, support.inputs)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_of_too_many_runs_every_data_set_keeps_its_best(folder, tiny):
    assert [r["run_id"] for r in build(folder, tiny[3], max_trunks=2).runs] == ["c", "a"]
    with pytest.raises(BadOption, match="max_trunks 0"):
        build(folder, tiny[3], max_trunks=0)


def test_a_folder_without_fitting_runs_is_refused(folder):
    with pytest.raises(NotFound, match="no complete training run of 'mlp'"):
        build(folder, build_target("mlp"))


def test_an_altered_checkpoint_is_refused(folder, tiny):
    save_for_spec(folder / "runs/a/10.safetensors", tiny[3].init_state(99), tiny[3].spec)
    with pytest.raises(CorruptFile, match=r"10.safetensors: sha256"):
        build(folder, tiny[3])


def test_saving_and_loading_keeps_everything_and_is_byte_identical(folder, tiny, tmp_path):
    zoo = build(folder, tiny[3])
    zoo.save(tmp_path / "r.safetensors")
    loaded = ReferenceZoo.load(tmp_path / "r.safetensors")
    assert loaded.runs == zoo.runs
    assert (loaded.arch, loaded.embedder) == ("cnn-tiny", "e")
    assert torch.equal(loaded.embeddings, zoo.embeddings)
    assert torch.equal(loaded.leave_one_out, zoo.leave_one_out)
    assert all(torch.equal(loaded.trunks[n], t) and t.dtype == torch.float16 for n, t in zoo.trunks.items())
    loaded.check(tiny[5])
    loaded.save(tmp_path / "s.safetensors")
    assert (tmp_path / "r.safetensors").read_bytes() == (tmp_path / "s.safetensors").read_bytes()


def test_values_too_large_for_float16_stay_float32(tmp_path):
    target = build_target("cnn-w4-d1", num_classes=3)

    def enlarge(state):
        state["blocks.0.norm.running_var"][0] = 1e6
        return state

    write_zoo(tmp_path, [(name, target, 1, "mnist", 0.9, "train") for name in "ab"], change=enlarge)
    zoo = build(tmp_path, target, dtype=torch.float16)
    assert zoo.trunks["blocks.0.norm.running_var"].dtype == torch.float32
    assert zoo.trunks["blocks.0.conv.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"format": "x"}, CorruptFile, "format 'x', expected a reference zoo"),
        ({"version": 2}, UnsupportedTask, "version 2"),
        ({"runs": []}, CorruptFile, "does not say which runs"),
        ({"runs": [{}]}, CorruptFile, "names 1 runs, the tensors hold another number"),
    ],
)
def test_other_files_are_refused(tmp_path, change, error, sentence):
    zoo = make_zoo(build_target("cnn-tiny"))
    zoo.save(tmp_path / "r.safetensors")
    from weightgen.files.checkpoint import load_state, read_manifest

    path = tmp_path / "r.safetensors"
    save_state(tmp_path / "x.safetensors", load_state(path), manifest=read_manifest(path) | change)
    with pytest.raises(error, match=sentence):
        ReferenceZoo.load(tmp_path / "x.safetensors")


def test_ranking_by_an_embedding_of_another_size_is_refused():
    with pytest.raises(UnsupportedTask, match="49 dimensions, this generator embeds in 5"):
        make_zoo(build_target("cnn-tiny")).rank(torch.ones(5))


def test_ranking_puts_equal_tasks_in_stored_order():
    zoo = make_zoo(build_target("cnn-tiny"))
    same = replace(zoo, embeddings=zoo.embeddings[:1].expand(4, -1))
    assert same.rank(zoo.embeddings[0]) == [0, 1, 2, 3]


def test_the_trunk_spec_leaves_out_the_head_and_carried_tensors():
    spec = build_target("resnet8").spec
    names = set(trunk_spec(spec).by_name)
    assert names == set(spec.by_name) - {"head.weight", "head.bias"} - {n for n in spec.by_name if "num_batches" in n}
