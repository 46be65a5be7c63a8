"""What is deployed: the manifest fits Kubernetes' schemas and the code's settings, and nothing in it may do much."""

from typing import Any

import pytest
import yaml

from service.process.drain import EXIT_SECONDS
from service.settings import PREFIX, Settings
from tests.helpers.paths import ROOT
from weightgen import __version__

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the schemas of Kubernetes are not installed")

MANIFEST = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
PODS = [thing["spec"]["template"]["spec"] for thing in MANIFEST if thing["kind"] in ("Deployment", "Job")]
SERVER = next(thing for thing in MANIFEST if thing["kind"] == "Deployment")
CONTAINER = SERVER["spec"]["template"]["spec"]["containers"][0]


def find(kind: str) -> dict[str, Any]:
    return next(thing for thing in MANIFEST if thing["kind"] == kind)


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize("thing", MANIFEST, ids=lambda thing: thing["kind"])
def test_everything_fits_the_schemas_of_kubernetes(thing, version):
    kubernetes_validate.validate(thing, version, strict=True)


def test_a_misspelt_field_does_not_fit_the_schemas():
    wrong = {**find("Service"), "spec": {**find("Service")["spec"], "selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="selectors"):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_the_settings_are_known_and_in_their_ranges():
    given = find("ConfigMap")["data"]
    assert all(name.removeprefix(PREFIX).lower() in Settings.model_fields for name in given)
    Settings.model_validate_strings({name.removeprefix(PREFIX).lower(): value for name, value in given.items()})


@pytest.mark.parametrize("pod", PODS, ids=["server", "job"])
def test_a_pod_may_do_nothing_but_run(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "the variables of a Service called weightgen are no settings"
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
        assert container["image"] == f"weightgen:{__version__}"
        assert "memory" in container["resources"]["limits"]


def test_kubernetes_waits_longer_for_the_server_to_leave_than_it_takes():
    assert SERVER["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > EXIT_SECONDS + 1
    assert int(find("ConfigMap")["data"]["WEIGHTGEN_DRAIN_SECONDS"]) < EXIT_SECONDS


def test_the_probes_ask_the_routes_that_are_for_them():
    paths = {probe: CONTAINER[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_service_budget_and_policy_mean_the_server():
    labels = SERVER["spec"]["template"]["metadata"]["labels"]
    port = {"name": "http", "containerPort": int(find("ConfigMap")["data"]["WEIGHTGEN_PORT"])}
    assert CONTAINER["ports"] == [port] and find("Service")["spec"]["ports"][0]["targetPort"] == "http"
    chosen = [
        find("Service")["spec"]["selector"],
        find("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        SERVER["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in chosen)
    assert find("NetworkPolicy")["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8000}]
