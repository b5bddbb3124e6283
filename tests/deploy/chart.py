"""The Helm chart rendered by a real helm, and checks of Kubernetes documents against published schemas."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "baton"
HELM = os.environ.get("BATON_HELM") or shutil.which("helm")
CRDS = os.environ.get("BATON_CRDS", "")  # A folder with CustomResourceDefinitions
KUBERNETES_VERSION = "1.37"
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is neither on PATH nor named in $BATON_HELM.")
needs_crds = pytest.mark.skipif(not CRDS, reason="$BATON_CRDS names no folder with CustomResourceDefinitions.")
Document = dict[str, Any]


def helm(*arguments: str) -> str:
    """What helm prints; raises `CalledProcessError` with its `stderr`."""
    assert HELM is not None
    return subprocess.run([HELM, *arguments], check=True, capture_output=True, text=True).stdout


def rendered(*values: str) -> list[Document]:
    """The chart's documents with `key=value` values."""
    return documents(helm("template", "baton", str(CHART), *(f"--set={value}" for value in values)))


def documents(text: str) -> list[Document]:
    """The documents of a YAML text, without empty ones."""
    return [document for document in yaml.safe_load_all(text) if document is not None]


def of_kind(given: list[Document], kind: str, name: str = "baton") -> Document:
    """The one document of a kind and name."""
    (found,) = [document for document in given if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    return found


def pod_templates(cluster: Document) -> Iterator[tuple[str, Document]]:
    """The pod templates of a RayCluster, by group; the head's is "head"."""
    yield "head", cluster["spec"]["headGroupSpec"]["template"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def check_with_kubernetes(given: list[Document]) -> int:
    """Check documents and their pod templates against Kubernetes' schemas, strictly; returns how many were checked.

    Raises kubernetes_validate's `ValidationError`. Kinds that are not Kubernetes' own are skipped, but not their pods.
    """
    pods = [pod for document in given if document["kind"] == "RayCluster" for _, pod in pod_templates(document)]
    own = [document for document in given if document["apiVersion"] == "v1"]
    own += [{"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod} for pod in pods]
    for document in own:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    return len(own)


def check_with_definitions(given: list[Document]) -> list[str]:
    """Check documents against the definitions in $BATON_CRDS, strictly; returns the kinds that were checked.

    Raises jsonschema's `ValidationError`.
    """
    known = _definitions()
    found = [document for document in given if (document["apiVersion"], document["kind"]) in known]
    for document in found:
        jsonschema.validate(document, known[document["apiVersion"], document["kind"]])
    return [document["kind"] for document in found]


@cache
def _definitions() -> dict[tuple[str, str], Document]:
    """The schema of each version and kind."""
    schemas = {}
    for path in sorted(Path(CRDS).glob("*.y*ml")):
        for definition in documents(path.read_text()):
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                schema["properties"]["metadata"] = {"type": "object"}
                _close(schema)
                schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


def _close(schema: Any) -> None:
    """Allow no properties besides those named, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    elif isinstance(schema, dict):
        named = schema.get("properties")
        if schema.pop("x-kubernetes-int-or-string", False):
            schema["type"] = ["integer", "string"]
            schema.pop("anyOf", None)
        if isinstance(named, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
