"""What the package uses of other projects that is not their public interface: each use with its reason, at one version.

An upgrade fails here first. Read then what the names below do in the new version, and change VERSIONS last. Nothing is
imported from these projects: their installed sources are read.
"""

import ast
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tailor_ray"
VERSIONS = {"ray": "2.60.0", "vllm": "0.29.0"}
PRIVATE = re.compile(r"\._|^vllm\.(v1|model_executor)\.")  # of vLLM these move from version to version

# file of ours, module of theirs, what is used of it, and why
USES = [
    (
        "student/engine.py",
        "vllm.v1.engine.llm_engine",
        "LLMEngine.from_engine_args LLMEngine.add_request LLMEngine.step LLMEngine.has_unfinished_requests "
        "LLMEngine.collective_rpc LLMEngine.reset_prefix_cache LLMEngine.sleep LLMEngine.wake_up LLMEngine.is_sleeping "
        "LLMEngine.get_tokenizer",
        "vllm.LLM admits no request while others are decoded, and AsyncLLM needs a process more",
    ),
    (
        "student/engine.py",
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "ParallelLMHead",
        "on CPU a reload of weights passes by the packed copy of a tied output head",
    ),
    ("student/engine.py", "vllm.v1.worker.gpu_worker", "Worker.reload_weights", "weights are swapped in place"),
    ("student/engine.py", "vllm.v1.worker.worker_base", "WorkerBase.get_model", "to find the output head"),
    ("observe/logs.py", "ray._private.worker", "print_worker_logs", "nothing else keeps it off stdout"),
    (
        "observe/logs.py",
        "ray._private.ray_logging",
        "global_worker_stdstream_dispatcher",
        "workers' lines go to our log",
    ),
    ("rounds/cluster.py", "ray._private.utils", "read_ray_address", "which cluster `ray start` left on this machine"),
    ("rounds/cluster.py", "ray._private.state", "state", "nothing else tells the autoscaler's limits"),
    ("rounds/watch.py", "ray._private.worker", "_global_node", "nothing else says where the raylet listens"),
    (
        "serving/deployment.py",
        "ray.llm._internal.common.callbacks.base",
        "CallbackBase CallbackConfig",
        "Ray would look for downloads in a task of its own, which imports vLLM first",
    ),
    (
        "serving/deployment.py",
        "ray.llm._internal.serve.engines.vllm.vllm_engine",
        "VLLMEngine VLLMEngine._start_async_llm_engine",
        "on CPU its core runs the model itself, where Ray asks for a worker process beside it",
    ),
    ("serving/deployment.py", "ray.serve.context", "_get_global_client", "whether Serve runs already, and where"),
    (
        "serving/ingress.py",
        "ray.llm._internal.serve.core.configs.openai_api_models",
        "OpenAIHTTPException to_model_metadata",
        "errors and models in OpenAI's form",
    ),
    (
        "serving/ingress.py",
        "ray.llm._internal.serve.utils.server_utils",
        "VLLM_CLIENT_ERRORS",
        "which of vLLM's errors are the client's own",
    ),
    (
        "serving/ingress.py",
        "ray.serve._private.replica",
        "add_port_to_grpc_server",
        "a replica's port for other deployments is to listen on loopback",
    ),
    (
        "training/worker.py",
        "ray.train.torch.config",
        "_TorchBackend _TorchBackend.on_start _TorchBackend.on_shutdown",
        "a cluster may count GPUs that torch cannot use: NCCL or gloo by what worker 0 sees; and workers that the "
        "memory monitor ended would keep their place",
    ),
]


def private_imports():
    """(file of ours, module of theirs, name) of each import that is not of a public interface."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((inside, alias.name, "") for alias in node.names if PRIVATE.search(alias.name))
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] != "tailor_ray":
                for alias in node.names:
                    if PRIVATE.search(node.module) or re.match(r"_[a-zA-Z]", alias.name):
                        yield inside, node.module, alias.name


def test_an_actor_that_the_memory_monitor_ended_is_a_lost_one():
    """Ray raises an OutOfMemoryError of its own for it, which is no RayActorError: who bears one bears the other."""
    bearing = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            said = ast.unparse(node) if isinstance(node, ast.Tuple) else ""
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                said = ast.unparse(node.type)
            if "RayActorError" in said:
                bearing += 1
                assert "OutOfMemoryError" in said, f"{path.name} bears a lost actor, but not one that ran out of memory"
    assert bearing


def test_each_use_of_an_internal_is_in_the_table():
    known = {(file, module): {name.partition(".")[0] for name in names.split()} for file, module, names, _ in USES}
    for file, module, name in private_imports():
        if module.startswith("__"):
            continue
        is_module = (file, f"{module}.{name}") in known
        assert is_module or (file, module) in known, f"{file} imports {module}: add it to USES with its reason"
        names = known.get((file, module), set())
        assert is_module or not name or name in names, f"{file} imports {name} from {module}: add it to USES"


def test_each_row_of_the_table_is_a_use():
    used = {(file, module) for file, module, _ in private_imports()}
    used |= {(file, f"{module}.{name}") for file, module, name in private_imports()}
    for file, module, _, _ in USES:
        indirect = module.startswith("vllm.v1.worker.")  # called by name, through collective_rpc
        assert indirect or (file, module) in used, f"{file} no longer imports {module}: delete the row"


def defined(module):
    """Names that a module's source defines or imports, and `Class.method` of its classes."""
    root, *rest = module.split(".")
    path = Path(importlib.util.find_spec(root).origin).parent.joinpath(*rest)
    file = path.with_suffix(".py")
    tree = ast.parse((file if file.exists() else path / "__init__.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name) for alias in node.names)


@pytest.mark.parametrize(("file", "module", "names", "why"), USES, ids=[f"{use[0]}-{use[1]}" for use in USES])
def test_an_internal_is_still_there(file, module, names, why):
    there = set(defined(module))
    assert set(names.split()) <= there, f"{file} needs it, for {why}"


@pytest.mark.parametrize("name", VERSIONS)
def test_the_version_is_the_one_that_was_read(name):
    dists = importlib.metadata.packages_distributions()[name]
    assert {importlib.metadata.version(dist) for dist in dists} == {VERSIONS[name]}
