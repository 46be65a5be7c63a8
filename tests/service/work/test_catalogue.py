import subprocess
import sys
from dataclasses import replace

import pytest

from model_zoo.architectures import ARCHITECTURES, build_target
from model_zoo.data.sklearn import SKLEARN_SETS
from model_zoo.released import RELEASED
from service.api.schemas import GeneratorFactsBody
from service.problems import Problem
from service.work.catalogue import registered
from service.work.size_limits import SizeLimits
from tests.helpers.service_standins import ASKED, stand_in_catalogue
from tests.helpers.upload_samples import npz_bytes, some_images, some_uploads, upload
from weightgen.errors import BadOption, UnknownName


def test_what_is_registered_can_be_asked_for():
    catalogue = registered()
    assert set(catalogue.generators()) == set(RELEASED)
    assert catalogue.architectures() == sorted(ARCHITECTURES)
    assert set(SKLEARN_SETS) <= set(catalogue.datasets())
    for generator in RELEASED:
        contents = catalogue.check({**ASKED, "generator": generator})
        assert contents["generator"] == catalogue.generators()[generator]
        assert contents["dataset"].startswith("scikit-learn ")


@pytest.mark.parametrize(
    ("field", "name"), [("generator", "mop"), ("architecture", "cnn-tony"), ("dataset", "digit"), ("dataset", ".")]
)
def test_what_is_not_registered_is_refused_with_what_is(field, name):
    catalogue = registered()
    with pytest.raises(Problem, match=repr(name)) as refused:
        catalogue.check({**ASKED, field: name})
    [part] = refused.value.errors
    assert part["pointer"] == f"#/{field}" and ASKED[field] in part["supported"]


def test_a_size_out_of_its_range_is_refused_at_the_architecture():
    def check_names(request):
        raise BadOption("width of 'cnn-w9999' is 9999, expected 1 to 4096")

    stand_in = stand_in_catalogue()
    catalogue = type(stand_in)(stand_in.generators, stand_in.architectures, stand_in.datasets, check_names)
    with pytest.raises(Problem, match="expected 1 to 4096") as refused:
        catalogue.check(dict(ASKED))
    assert refused.value.kind == "invalid-request" and refused.value.errors[0]["pointer"] == "#/architecture"


def test_an_uploaded_data_set_is_known_while_it_is_there(tmp_path):
    uploads = some_uploads(tmp_path)
    catalogue = replace(registered(), uploads=uploads)
    images, labels = some_images()
    name = upload(uploads, npz_bytes(x=images, y=labels))
    assert "dataset" not in catalogue.check({**ASKED, "dataset": name})  # its name says what it holds
    uploads.delete(name)
    with pytest.raises(Problem, match="upload it again") as refused:
        catalogue.check({**ASKED, "dataset": name})
    assert refused.value.errors[0]["pointer"] == "#/dataset"


def test_a_registered_data_set_is_described_as_generators_get_it():
    about = registered().describe("digits")
    assert (about["kind"], about["shape"], about["num_classes"]) == ("images", [1, 28, 28], 10)
    assert about["train"] + about["test"] == about["examples"] == 1797
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        registered().describe("digit")


def test_importing_the_service_loads_no_torch():
    code = "import sys, service.app, service.__main__; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("generator", RELEASED)
def test_every_released_generator_ships_its_facts(generator):
    facts = GeneratorFactsBody(name=generator, sha256="a" * 64, **registered().facts(generator))
    assert facts.about.endswith(".") and facts.scoreboards
    assert facts.architectures is None or set(ARCHITECTURES) & set(facts.architectures)


def test_an_architecture_that_is_too_large_for_any_data_is_refused_at_once():
    catalogue = replace(registered(), limits=SizeLimits(10, 1000, 100_000))
    assert catalogue.check({**ASKED, "architecture": "mlp", "support_per_class": 1})
    with pytest.raises(Problem, match="'cnn-w256-d8' has .* or more, and this server takes at most 100000; ask for"):
        catalogue.check({**ASKED, "architecture": "cnn-w256-d8", "support_per_class": 1})


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_fewest_parameters_are_no_more_than_a_network_has(architecture):
    fewest = registered().fewest_parameters(architecture)
    assert 0 < fewest <= build_target(architecture, num_classes=2).spec.num_parameters


def test_an_uploaded_data_set_over_a_limit_is_refused_at_once(tmp_path):
    uploads = some_uploads(tmp_path)
    images, labels = some_images()
    name = upload(uploads, npz_bytes(x=images, y=labels))
    num_classes = uploads.describe(name)["num_classes"]
    catalogue = replace(registered(), uploads=uploads, limits=SizeLimits(num_classes, 7 * num_classes, 10**7))
    assert catalogue.check({**ASKED, "dataset": name, "support_per_class": 7})
    with pytest.raises(Problem, match="ask for a smaller support_per_class") as refused:
        catalogue.check({**ASKED, "dataset": name, "support_per_class": 8})
    assert refused.value.kind == "over-limit"
