"""The cluster files are valid by Ray's own schema and have nodes for every pool of the configuration."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from baton.cli.main import app
from baton.config.parse import parse_config
from baton.config.placement import check_placement, demand
from baton.config.schema import BatonConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CLUSTER_FILES = ["ray-aws.yaml", "ray-gcp.yaml", "ray-local.yaml"]


def _cluster_file(name: str) -> dict[str, Any]:
    """The file as `ray up` reads it: with Ray's defaults, checked against Ray's schema."""
    prepared = prepare_config(yaml.safe_load((DEPLOY / name).read_text()))
    validate_config(prepared)
    return prepared


def _kuberay(name: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text())}


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_a_cluster_file_is_valid_by_rays_schema(name: str) -> None:
    prepared = _cluster_file(name)
    assert prepared["cluster_name"] == "baton"
    for kind in ("head", "worker"):
        stop, start = prepared[f"{kind}_start_ray_commands"]
        assert stop == "ray stop"
        assert "ray start" in start
    assert any("install" in command and "~/baton" in command for command in prepared["setup_commands"])


def test_a_mistyped_key_would_be_found() -> None:
    wrong = yaml.safe_load((DEPLOY / "ray-aws.yaml").read_text())
    wrong["available_node_types"]["decode"]["label"] = {}
    with pytest.raises(Exception, match="'label' was unexpected"):
        validate_config(prepare_config(wrong))


def _pools(config: BatonConfig) -> list[str]:
    check_placement(config)
    return [role for role in ("prefill", "decode", "mixed") if getattr(config.pools, role)]


@pytest.mark.parametrize("name", ["ray-aws.yaml", "ray-gcp.yaml"])
def test_every_pool_has_its_kind_of_node_in_the_cloud(name: str) -> None:
    config = parse_config((DEPLOY / "pools.toml").read_text())
    kinds = _cluster_file(name)["available_node_types"]
    for pool in _pools(config):
        wanted = demand(config, pool)
        fitting = [
            kind
            for kind, node in kinds.items()
            if all(node["resources"].get(taken, 0) >= amount for taken, amount in wanted.bundle.items())
            and wanted.labels.items() <= node.get("labels", {}).items()
        ]
        assert fitting == [pool]
        room = sum(kinds[pool]["resources"][f"baton_{pool}"] * kinds[pool]["max_workers"] for _ in fitting)
        assert room >= getattr(config.pools, pool)


def test_every_pool_has_its_group_of_pods_and_all_have_one_image() -> None:
    documents = _kuberay("raycluster.yaml")
    cluster = documents["RayCluster"]
    assert cluster["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["rayVersion"] == ray.__version__
    assert f"FROM rayproject/ray:{ray.__version__}-" in (DEPLOY / "kuberay" / "Dockerfile").read_text()
    templates = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert len({container["image"] for template in templates for container in template["containers"]}) == 1
    for template in templates:
        volumes = {volume["name"] for volume in template.get("volumes", [])}
        assert {mount["name"] for mount in template["containers"][0].get("volumeMounts", [])} == volumes
    config = parse_config(documents["ConfigMap"]["data"]["cluster.toml"])
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert list(groups) == ["gateway", *_pools(config)]
    for pool in _pools(config):
        group, wanted = groups[pool], demand(config, pool)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["maxReplicas"] >= getattr(config.pools, pool)
        assert wanted.labels == group["labels"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        has = {"CPU": limits["cpu"], "GPU": limits["nvidia.com/gpu"], **group["resources"]}
        assert all(float(has[taken]) >= amount for taken, amount in wanted.bundle.items())
    assert demand(config, "gateway").bundle.items() <= {"baton_gateway": 1.0}.items()
    assert groups["gateway"]["maxReplicas"] >= config.pools.gateways


def test_the_job_runs_on_that_cluster_with_the_configuration_it_mounts() -> None:
    job, documents = _kuberay("rayjob.yaml")["RayJob"], _kuberay("raycluster.yaml")
    assert job["apiVersion"] == "ray.io/v1"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": documents["RayCluster"]["metadata"]["name"]}
    head = documents["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    folder = head["containers"][0]["volumeMounts"][0]["mountPath"]
    (file,) = documents["ConfigMap"]["data"]
    assert job["spec"]["entrypoint"] == f"baton up --config {folder}/{file}"


def test_the_systemd_unit_calls_commands_and_options_that_exist() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "baton.service")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for key, name in (("ExecStart", "up"), ("ExecStop", "down")):
        program, command, *options = shlex.split(unit["Service"][key])
        assert (Path(program).name, command) == ("baton", name)
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert {option for option in options if option.startswith("-")} <= known
    assert unit["Service"]["OOMPolicy"] == "continue"  # otherwise one killed worker ends the unit
