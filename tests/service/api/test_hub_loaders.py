"""Weights that the service generates, loaded unmodified by what people load weights with: the released generators make
them, a live server hands them over, and a process with HF_ENDPOINT loads them by their names."""

import json

import pytest
import torch
import transformers
from torch import Tensor

from model_zoo.architectures.cnn_tiny import CnnTiny
from model_zoo.released import RELEASED, expected_hashes
from service.app import open_artifacts
from tests.helpers.hub_clients import client_environment, run_client
from tests.helpers.live_servers import live_generation

MIXIN, VIT = "gen/cnn-tiny.digits.mip.s0", "gen/vit-hf-tiny.digits.logah.s0"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The URL of a service that generates in earnest, and the store of its artifacts."""
    with live_generation(tmp_path_factory.mktemp("loaders")) as (url, settings):
        yield url, open_artifacts(settings, "artifacts")


def images() -> Tensor:
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


LOAD = """
import json, sys
import torch
from huggingface_hub import HfApi, snapshot_download
from model_zoo.architectures.cnn_tiny import CnnTiny
from transformers import AutoConfig, AutoModelForImageClassification

mixin, vit = sys.argv[1:]
inputs = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
model, network = AutoModelForImageClassification.from_pretrained(vit), CnnTiny.from_pretrained(mixin)
pinned = CnnTiny.from_pretrained(mixin, revision=HfApi().model_info(mixin).sha)
config = AutoConfig.from_pretrained(vit)
with torch.no_grad():
    print(json.dumps({
        "mixin": network(inputs).tolist(),
        "pinned": pinned(inputs).tolist(),
        "vit": model(inputs).logits.tolist(),
        "class": type(model).__name__,
        "labels": [config.model_type, config.id2label[7]],
        "folders": [snapshot_download(mixin), snapshot_download(vit)],
    }))
"""


def test_generated_weights_are_loaded_by_the_mixin_and_by_the_auto_classes(service, tmp_path):
    told = json.loads(run_client(LOAD, MIXIN, VIT, environment=client_environment("installed", service[0], tmp_path)))
    network: CnnTiny = CnnTiny.from_pretrained(told["folders"][0])
    vit = transformers.AutoModelForImageClassification.from_pretrained(told["folders"][1])
    with torch.no_grad():
        assert told["mixin"] == told["pinned"] == network(images()).tolist()
        assert told["vit"] == vit(images()).logits.tolist()
    assert told["class"] == "ViTForImageClassification" and told["labels"] == ["vit", "7"]
    for folder, generator in zip(told["folders"], ("mip", "logah"), strict=True):
        with open(f"{folder}/manifest.json") as file:
            manifest = json.load(file)
        assert manifest["source"] == generator and manifest["verification"]["passed"] is True
        assert manifest["generator"] == {"name": generator, "sha256": expected_hashes()[RELEASED[generator]]}


WRITE = """
import sys
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification

base, folder = sys.argv[1:]
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
get_peft_model(AutoModelForImageClassification.from_pretrained(base), lora).save_pretrained(folder)
"""

ADAPT = """
import json, sys
import torch
from peft import AutoPeftModel, PeftModel
from transformers import AutoModelForImageClassification

base, adapter = sys.argv[1:]
inputs = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
plain = AutoModelForImageClassification.from_pretrained(base)
with torch.no_grad():
    told = {"plain": plain(inputs).logits.tolist()}
    told["adapted"] = PeftModel.from_pretrained(plain, adapter)(inputs).logits.tolist()
    told["automatic"] = AutoPeftModel.from_pretrained(adapter)(inputs).logits.tolist()
added = AutoModelForImageClassification.from_pretrained(base)
added.load_adapter(adapter)
with torch.no_grad():
    told["added"] = added(inputs).logits.tolist()
print(json.dumps(told))
"""


def test_an_adapter_among_the_artifacts_is_loaded_onto_the_generated_network_that_it_names(service, tmp_path):
    """No released generator makes adapters; peft wrote this one."""
    url, store = service
    environment = client_environment("installed", url, tmp_path / "home")
    run_client(WRITE, VIT, str(tmp_path / "adapter"), environment=environment)
    name = f"sha/{store.add(tmp_path / 'adapter')}"
    told = json.loads(run_client(ADAPT, VIT, name, environment=environment))
    plain, adapted = torch.tensor(told["plain"]), torch.tensor(told["adapted"])
    assert (plain - adapted).abs().max() > 1e-3
    torch.testing.assert_close(torch.tensor(told["automatic"]), adapted)
    torch.testing.assert_close(torch.tensor(told["added"]), adapted)
