"""The manifests for Kubernetes are valid by its own schemas and by the published definitions of other kinds."""

from __future__ import annotations

from copy import deepcopy

import jsonschema
import kubernetes_validate
import pytest

from baton.config.parse import parse_config
from tests.deploy.chart import (
    DEPLOY,
    check_with_definitions,
    check_with_kubernetes,
    documents,
    needs_crds,
    of_kind,
    pod_templates,
)

CLUSTER = documents((DEPLOY / "kuberay" / "raycluster.yaml").read_text())
POOL = documents((DEPLOY / "kuberay" / "inferencepool.yaml").read_text())


def test_the_manifests_are_valid_for_kubernetes() -> None:
    assert check_with_kubernetes(CLUSTER) == 6  # A configuration, a service, and the pods of four groups


def test_a_mistyped_key_of_a_pod_would_be_found() -> None:
    wrong = deepcopy(CLUSTER)
    of_kind(wrong, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        check_with_kubernetes(wrong)


@needs_crds
def test_the_manifests_are_valid_by_the_definitions_of_their_kinds() -> None:
    job = documents((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
    assert {"RayCluster", "RayJob", "InferencePool"} <= set(check_with_definitions([*CLUSTER, *job, *POOL]))
    wrong = deepcopy(CLUSTER)
    of_kind(wrong, "RayCluster")["spec"]["autoscalerOptions"]["idleTimeout"] = 1
    with pytest.raises(jsonschema.ValidationError, match="idleTimeout"):
        check_with_definitions(wrong)


def test_service_and_inference_pool_select_the_gateways_at_their_port() -> None:
    config = parse_config(of_kind(CLUSTER, "ConfigMap")["data"]["cluster.toml"])
    pool = of_kind(POOL, "InferencePool")["spec"]
    selector = {"ray.io/cluster": "baton", "ray.io/group": "gateway"}
    service = of_kind(CLUSTER, "Service")["spec"]
    assert pool["selector"]["matchLabels"] == service["selector"] == selector
    assert pool["targetPorts"] == [{"number": config.gateway.http_port}]
    assert {port["name"]: port["port"] for port in service["ports"]} == {
        "grpc": config.gateway.port,
        "http": config.gateway.http_port,
    }
    gateway = dict(pod_templates(of_kind(CLUSTER, "RayCluster")))["gateway"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    assert ports == {"grpc": config.gateway.port, "http": config.gateway.http_port}
