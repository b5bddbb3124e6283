"""The Helm chart: what real helm renders is a configuration of Baton and valid for Kubernetes."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from baton.config.parse import parse_config
from baton.config.placement import check_placement, demand
from baton.config.schema import BatonConfig
from tests.deploy.chart import (
    CHART,
    DEPLOY,
    Document,
    check_with_definitions,
    check_with_kubernetes,
    documents,
    helm,
    needs_crds,
    needs_helm,
    of_kind,
    pod_templates,
    rendered,
)

GPUS = r"resources.limits.nvidia\.com/gpu"
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "secured": ("access.tls.secret=tls", "access.tokens.secret=tokens", "metrics.podMonitor.enabled=true"),
    "mutual": ("access.tls.secret=tls", "access.tls.clientCa=true"),
    "without HTTP": ("config.gateway.http_port=off", "config.router.admin_http_port=off", "access.openAdmin=true"),
    "mixed": ("pools.mixed.workers=2", "pools.prefill.workers=0", "pools.prefill.maxWorkers=0", "gateways.count=1"),
    "several ranks": (
        *("pools.prefill.tensorParallel=4", "pools.prefill.resources.limits.cpu=16", f"pools.prefill.{GPUS}=4"),
        *("pools.decode.tensorParallel=2", f"pools.decode.{GPUS}=2"),
    ),
    "scheduled": ("image.pullSecrets={one}", "head.nodeSelector.zone=a", "gateways.tolerations[0].key=x"),
}
each_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())


def _config(given: list[Document]) -> BatonConfig:
    config = parse_config(of_kind(given, "ConfigMap")["data"]["cluster.toml"])
    check_placement(config)
    return config


def _gateway(given: list[Document]) -> Any:
    """The container of a gateway."""
    return dict(pod_templates(of_kind(given, "RayCluster")))["gateway"]["spec"]["containers"][0]


def test_the_values_keep_to_their_schema_and_a_mistyped_key_does_not() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    values["pools"]["prefill"]["worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="'worker' was unexpected"):
        jsonschema.validate(values, schema)


@needs_helm
def test_helm_finds_nothing_wrong_and_refuses_values_outside_the_schema() -> None:
    helm("lint", "--strict", str(CHART))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        rendered("gateways.count=0")
    assert re.search("gateways.count", refused.value.stderr)


@needs_helm
def test_a_pod_with_too_few_gpus_for_the_ranks_of_its_worker_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        rendered("pools.decode.tensorParallel=4", f"pools.decode.{GPUS}=2")
    assert "pools.decode: a worker takes 4 GPUs, and its pod has 2 in resources.limits" in refused.value.stderr


@needs_helm
@each_variant
def test_every_variant_is_valid_for_kubernetes(values: tuple[str, ...]) -> None:
    assert check_with_kubernetes(rendered(*values)) >= 5


@needs_helm
@needs_crds
@each_variant
def test_every_variant_is_valid_for_kuberay(values: tuple[str, ...]) -> None:
    assert {"RayCluster", "RayJob"} <= set(check_with_definitions(rendered(*values)))


@needs_helm
@each_variant
def test_every_worker_and_gateway_of_the_configuration_has_its_pods(values: tuple[str, ...]) -> None:
    given = rendered(*values)
    config, cluster = _config(given), of_kind(given, "RayCluster")
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    counts = {pool: getattr(config.pools, pool) for pool in ("prefill", "decode", "mixed")}
    assert set(groups) >= {"gateway", *(pool for pool, count in counts.items() if count)}
    for name, group in groups.items():
        wanted = demand(config, name)
        assert group["replicas"] == group["minReplicas"] == 0
        assert group["maxReplicas"] >= counts.get(name, config.pools.gateways)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        has = {"CPU": limits["cpu"], "GPU": limits.get("nvidia.com/gpu", 0), **group["resources"]}
        assert all(float(has[taken]) >= amount for taken, amount in wanted.bundle.items())
        assert wanted.labels.items() <= group.get("labels", {}).items()


@needs_helm
@each_variant
def test_files_of_the_configuration_are_mounted_where_router_and_gateways_run(values: tuple[str, ...]) -> None:
    given = rendered(*values)
    access = _config(given).access
    files = [access.tls_certificate, access.tls_key, access.client_ca, access.tokens_file]
    pods = dict(pod_templates(of_kind(given, "RayCluster")))
    for group in ("head", "gateway"):
        mounts = [mount["mountPath"] for mount in pods[group]["spec"]["containers"][0].get("volumeMounts", [])]
        assert all(any(file.startswith(f"{mount}/") for mount in mounts) for file in files if file)
    entrypoint = of_kind(given, "RayJob", "baton-up-1")["spec"]["entrypoint"]
    mounts = [mount["mountPath"] for mount in pods["head"]["spec"]["containers"][0]["volumeMounts"]]
    assert entrypoint.removeprefix("baton up --config ").removesuffix("/cluster.toml") in mounts


@needs_helm
def test_probes_ask_what_the_gateway_serves_without_a_secret() -> None:
    def probes(*values: str) -> list[Any]:
        gateway = _gateway(rendered(*values))
        kinds = [gateway[f"{name}Probe"] for name in ("startup", "liveness", "readiness")]
        return [{key: probe[key] for key in probe if key in ("httpGet", "grpc", "tcpSocket")} for probe in kinds]

    alive, ready = {"path": "/liveness", "port": "http"}, {"path": "/readiness", "port": "http"}
    assert probes() == [{"httpGet": alive}, {"httpGet": alive}, {"httpGet": ready}]
    encrypted = probes(*VARIANTS["secured"])
    assert [probe["httpGet"]["scheme"] for probe in encrypted] == ["HTTPS"] * 3
    port = {"tcpSocket": {"port": "grpc"}}
    assert probes(*VARIANTS["mutual"]) == [port] * 3
    assert probes(*VARIANTS["without HTTP"]) == [port, port, {"grpc": {"port": 50051, "service": "baton.v1.Inference"}}]


@needs_helm
def test_the_router_listens_beyond_its_pod_only_with_protection() -> None:
    def admin(*values: str) -> tuple[str, bool]:
        given = rendered(*values)
        services = [document["metadata"]["name"] for document in given if document["kind"] == "Service"]
        return _config(given).router.admin_host, "baton-admin" in services

    assert admin() == ("127.0.0.1", False)
    for values in (VARIANTS["secured"], VARIANTS["mutual"], VARIANTS["without HTTP"]):
        assert admin(*values) == ("0.0.0.0", True)


@needs_helm
def test_prometheus_finds_gateways_and_router_with_scheme_and_token() -> None:
    given = rendered(*VARIANTS["secured"], "metrics.podMonitor.token.secret=watcher")
    endpoints = of_kind(given, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert {endpoint["port"] for endpoint in endpoints} == {"http", "admin-http"}
    assert {endpoint["scheme"] for endpoint in endpoints} == {"https"}
    assert all(endpoint["authorization"]["credentials"]["name"] == "watcher" for endpoint in endpoints)
    pods = dict(pod_templates(of_kind(given, "RayCluster")))
    ports = {name: pods[name]["metadata"]["annotations"]["prometheus.io/port"] for name in ("head", "gateway")}
    assert ports == {"head": "8001", "gateway": "8000"}
    served = {port["name"] for name in ports for port in pods[name]["spec"]["containers"][0]["ports"]}
    assert {"http", "admin-http"} <= served


@needs_helm
def test_a_key_of_the_configuration_takes_precedence_over_the_values() -> None:
    config = _config(rendered("config.gateway.http_port=9000", "config.model.dtype=bfloat16", "config.pools.decode=3"))
    assert (config.gateway.http_port, config.gateway.host) == (9000, "0.0.0.0")
    assert (config.model.dtype, config.pools.decode) == ("bfloat16", 3)


@needs_helm
def test_the_manifests_without_helm_are_what_the_chart_renders() -> None:
    chart = rendered()
    committed = [
        document
        for name in ("raycluster.yaml", "rayjob.yaml")
        for document in documents((DEPLOY / "kuberay" / name).read_text())
    ]
    assert sorted(committed, key=str) == sorted(chart, key=str), "run deploy/kuberay/render.sh"
