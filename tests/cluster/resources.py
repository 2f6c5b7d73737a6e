"""Reads a manifest as the API server would with strict validation: `check(document)` raises ValueError.

Kubernetes' own resources and pods are read by the models of its Python client, which refuse unknown fields. Those of
ray.io/v1 are models made of the table kuberay_fields.json, which `kuberay_fields.py` wrote from the operator's types.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from kubernetes import client
from kubernetes.utils.quantity import parse_quantity
from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, create_model

from tests.cluster.kuberay_fields import TABLE

STRICT = ConfigDict(extra="forbid")
SCALARS = {"str": StrictStr, "bool": StrictBool, "int": StrictInt, "float": float}
# Strings to the client's models; the API server knows no others.
ALLOWED = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "medium": {"", "Memory"},
    "operator": {"Exists", "Equal"},
    "protocol": {"TCP", "UDP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
}
RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "storage"}
KUBERNETES = {
    ("v1", "ConfigMap"): client.V1ConfigMap,
    ("v1", "PersistentVolumeClaim"): client.V1PersistentVolumeClaim,
    ("v1", "Service"): client.V1Service,
    ("v1", "ServiceAccount"): client.V1ServiceAccount,
    ("apps/v1", "Deployment"): client.V1Deployment,
}


def check(document: dict[str, Any]) -> None:
    """Raise ValueError for an unknown or missing field, a value of another type, and one that is not allowed."""
    version, kind = document["apiVersion"], document["kind"]
    read = _resource(version, kind).model_validate(document)
    again = read.model_dump(by_alias=True, exclude_unset=True, mode="json")
    if again != document:  # the models take snake_case names as well, which Kubernetes does not
        raise ValueError(f"{kind} is written otherwise: {again}")
    for name, value in _walk(document):
        if name in ALLOWED and not set(value if isinstance(value, list) else [value]) <= ALLOWED[name]:
            raise ValueError(f"{name} is {value}, and must be of {sorted(ALLOWED[name])}")
        if name in ("requests", "limits"):
            for resource, quantity in value.items():
                if resource not in RESOURCES or parse_quantity(quantity) <= 0:
                    raise ValueError(f"{name} has {resource}: {quantity}")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for one in value:
            yield from _walk(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name, one
            yield from _walk(one)


def _resource(version: str, kind: str) -> type[BaseModel]:
    if version == "ray.io/v1":
        return _top(version, kind, _model(f"{kind}Spec"))
    if (version, kind) == ("monitoring.coreos.com/v1", "PodMonitor"):  # of Prometheus' operator what we use
        endpoint = _strict("Endpoint", port=(StrictStr, ...), interval=(StrictStr, "30s"), path=(StrictStr, "/metrics"))
        fields = {"selector": (client.V1LabelSelector, ...), "podMetricsEndpoints": (list[endpoint], ...)}
        return _top(version, kind, _strict("PodMonitorSpec", **fields))
    if (version, kind) not in KUBERNETES:
        raise ValueError(f"no resource {kind} of {version} is known")
    return KUBERNETES[version, kind]


def _top(version: str, kind: str, spec: type[BaseModel]) -> type[BaseModel]:
    about = {"apiVersion": (Literal[version], ...), "kind": (Literal[kind], ...)}
    return _strict(kind, **about, metadata=(client.V1ObjectMeta, ...), spec=(spec, ...))


def _strict(name: str, **fields: Any) -> type[BaseModel]:
    return create_model(name, __config__=STRICT, **fields)


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(TABLE.read_text())["types"]


@cache
def _model(name: str) -> type[BaseModel]:
    """Of a type of the table."""
    fields = {}
    for key, about in _table()[name].items():
        kind = Literal[tuple(about["enum"])] if "enum" in about else _annotation(about["type"])
        fields[key] = (kind, ...) if about.get("required") else (kind, None)
    return _strict(name, **fields)


def _annotation(kind: str) -> Any:
    if kind.startswith("list["):
        return list[_annotation(kind[5:-1])]
    if kind.startswith("dict["):
        return dict[str, _annotation(kind.removeprefix("dict[str, ")[:-1])]
    if kind in SCALARS:
        return SCALARS[kind]
    return _model(kind) if kind in _table() else getattr(client, kind)
