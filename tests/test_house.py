"""The house rules that a machine can check: who may import whom, sizes, names, docstrings, and what README lists."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house_figures

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tailor_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
LIGHT = {"errors", "once", "records", "statistics", "layout", "config", "storage", "answers", "prompts", "models"}
# Rooms (first folder or module below tailor_ray) and the rooms that they may import; cli may import all.
MAY_IMPORT = {
    "errors": set(),
    "once": set(),
    "records": {"errors"},
    "statistics": {"records"},
    "config": {"errors", "records"},
    "storage": {"errors", "once"},
    "layout": {"errors", "storage"},
    "answers": {"errors", "once", "records"},
    "prompts": {"errors", "records", "answers", "config"},
    "models": {"errors", "once", "config", "storage"},
    "tasks": {"errors", "records", "answers", "config", "storage"},
    "student": LIGHT | {"tasks", "observe"},
    "teacher": LIGHT | {"tasks", "observe"},
    "training": LIGHT | {"observe"},
    "serving": LIGHT | {"observe"},
    "observe": {"errors", "once", "records", "statistics", "layout", "config", "storage", "answers"},
    "demo": LIGHT | {"tasks", "teacher"},
    "rounds": LIGHT | {"tasks", "student", "teacher", "training", "serving", "observe", "demo"},
    "ops": LIGHT | {"tasks", "student", "teacher", "serving", "observe", "rounds", "demo"},
    "cli": LIGHT | {"tasks", "student", "teacher", "training", "serving", "observe", "rounds", "ops", "demo"},
}
# Who may know the demo: its command, and what begins a run's student and teacher. `tasks` finds its task by name.
KNOWS_DEMO = ("ops/serve.py", "rounds/services.py", "rounds/stages.py")
# Third-party packages that only these places may import, at any depth.
HEAVY = {
    "vllm": ("student/engine.py",),
    "torch": ("training/", "demo/tiny.py"),
    "deepspeed": ("training/",),
}
RAY_FREE = (LIGHT | {"tasks"}) - {"observe"}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Every imported module name, at any depth, with whether it is at the top level of the file."""
    tree = ast.parse(path.read_text())
    checked = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    top = set(map(id, [*tree.body, *(node for block in checked for node in block.body)]))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in top
            for alias in node.names:  # `from tailor_ray.demo import arithmetic`
                yield f"{node.module}.{alias.name}", id(node) in top


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    inside = path.relative_to(PACKAGE).as_posix()
    if room in ("__init__", "__main__"):
        return
    assert room in MAY_IMPORT, f"{inside}: add the room to MAY_IMPORT and to the README"
    for name, _ in imports_of(path):
        package, _, rest = name.partition(".")
        if package == "tailor_ray" and rest:
            other = rest.split(".")[0]
            assert other != "demo" or room == "demo" or inside in KNOWS_DEMO, f"{inside} imports {name}"
            assert other in {room, *MAY_IMPORT[room]} or other == "__version__", f"{inside} imports {name}"
        if package == "ray":
            assert room not in RAY_FREE, f"{inside} imports {name}"
            assert inside != "rounds/spec.py", f"{inside} imports {name}"
        for heavy, places in HEAVY.items():
            assert package != heavy or inside.startswith(places), f"{inside} imports {name}"


def test_modules_have_no_import_cycles():
    edges = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        edges[module] = {name for name, top in imports_of(path) if top and name.startswith("tailor_ray.")} - {module}
    seen, done = [], set()

    def visit(module):
        assert module not in seen, f"import cycle: {' → '.join([*seen[seen.index(module) :], module])}"
        if module in done or module not in edges:
            return
        seen.append(module)
        for other in sorted(edges[module]):
            # importing a.b also runs a/__init__, but a package's own modules are imported by its __init__ on purpose
            visit(other)
        seen.pop()
        done.add(module)

    for module in edges:
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):  # that they are typed is ruff's to say
    text = path.read_text()
    assert text.count("\n") <= 400, "over 400 lines: split the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 100, f"{node.name} has {length} lines"


ROOMS = sorted({room_of(path) for path in FILES} - {"__init__", "__main__"})
# What rooms do not keep to yet. It may only shrink: an entry that is no longer needed fails the test.
ALL = {"multiline", "naming", "sentences", "used once"}
NOT_YET = {
    "answers": {"used once"},
    "cli": {"multiline", "naming"},  # they are the texts of --help
    "training": {"used once"},
}
LEAST = 10  # functions or sentences; of fewer a share says nothing


def test_no_class_name_stands_for_two_things():
    classes, _ = house_figures.names_in_several_files(ROOT)
    assert not classes, f"rename one of {classes}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_its_contracts(room):
    found = house_figures.measure(ROOT, [path for path in FILES if room_of(path) == room])
    broken = set()
    if found.documented >= LEAST:
        broken |= {"multiline"} if found.multiline < 0.5 * found.documented else set()
        broken |= {"naming"} if found.naming < 0.4 * found.documented else set()
    if found.sentences >= LEAST and found.words > 13 * found.sentences:
        broken |= {"sentences"}
    if len(found.lengths) >= LEAST and len(found.used_once) > 0.15 * len(found.lengths):
        broken |= {"used once"}
    allowed = NOT_YET.get(room, set())
    assert not broken - allowed, f"{room}: {broken - allowed}; see {found}"
    assert not allowed - broken, f"{room}: delete {allowed - broken} from NOT_YET"


def test_the_readme_lists_each_room():
    table = (ROOT / "README.md").read_text().partition("## Rooms")[2]
    cells = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    listed = {name.strip("/").removesuffix(".py") for name in re.findall(r"`([\w./]+)`", cells)}
    assert listed == set(ROOMS) - {"cli", "errors"}  # the commands have a table of their own


def test_only_the_layout_spells_a_runs_paths():
    spelt = re.compile(r"""\.child\(["']rounds|["'](rounds|report|teacher)/|["'](run|lease)\.(yaml|json)["']""")
    places = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if spelt.search(line) and path.relative_to(PACKAGE).as_posix() not in ("layout.py", "storage/lease.py")
    ]
    assert not places, "\n".join(places)


def test_training_itself_runs_wherever_torch_does():
    """On a bare GPU machine, for one: without ray, deepspeed, vllm and pydantic, in a process of its own."""
    modules = (
        *("forward", "losses", "packing", "tree", "model", "steps", "plan", "exactness", "deepspeed_engine", "export"),
    )
    code = (
        "import sys; [sys.modules.__setitem__(name, None) for name in ('ray', 'deepspeed', 'vllm', 'pydantic')]; "
        f"import importlib; [importlib.import_module('tailor_ray.training.' + name) for name in {modules}]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_answers_fast_because_heavy_imports_wait():
    code = (
        "import sys; import tailor_ray.cli; "
        "print([name for name in ('ray', 'torch', 'vllm', 'transformers', 'deepspeed', 'openai', 'pandas') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_names_this_machine_or_a_registry():
    done = subprocess.run(
        [
            "git",
            "grep",
            "-nIE",
            r"/(home|root|work)/|pypi\.org|files\.pythonhosted",
            "--",
            ".",
            ":!tests/test_house.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    allowed = [line for line in done.stdout.splitlines() if not line.startswith("cluster/")]
    assert not allowed, "\n".join(allowed)


def test_benchmarks_import_nothing_from_tests():
    for path in (ROOT / "jobs").rglob("*.py"):
        assert not [name for name, _ in imports_of(path) if name.split(".")[0] == "tests"], path


# Private names that tests read all the same, each with its reason. They may only become fewer.
PRIVATE_READS = {
    ("integration/teaching.py", "_private"): "Ray's internal state: nothing else tells of jobs that have ended",
    ("integration/test_teacher.py", "_private"): "nothing else says where Ray writes its logs",
    ("integration/test_teacher_killed.py", "_private"): "nothing else says where Ray writes its logs",
    ("observe/test_logs.py", "_private"): "what Ray calls with each line of a worker",
    ("cluster/test_upload.py", "_private"): "how Ray packs what it uploads",
    ("cluster/test_launcher.py", "_private"): "how Ray's launcher reads a cluster's file",
    ("serving/test_ingress.py", "_internal"): "what Ray's servers answer with",
    ("training/test_families.py", "_experts_implementation"): "a setting of transformers",
    ("training/test_worker.py", "_attn_implementation"): "a setting of transformers",
    ("smollm2.py", "_name_or_path"): "a setting of transformers",
}
PRIVATE = re.compile(
    r"(?<=[\w\])}])(?<!\bself)(?<!\bcls)\.(_[a-z]\w*)"  # x._y, x()._y, x[0]._y
    r"""|attr\([^"']*["'](_[a-z]\w*)["']"""  # getattr(x, "_y"), monkeypatch.setattr(x, "_y", …)
)
PUBLIC = {"_exit", "_asdict", "_fields", "_make", "_replace"}  # in spite of their names


def private_reads(path):
    """Private names of other objects that a file reads, in the code that it holds as text as well."""
    text = path.read_text()
    for line in text.splitlines():
        yield from (first or second for first, second in PRIVATE.findall(line))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if re.match(r"_[a-z]", alias.name))


def test_tests_go_through_public_names():
    tests, tables = ROOT / "tests", {"test_house.py", "test_internals.py"}
    files = {path.relative_to(tests).as_posix(): path for path in tests.rglob("*.py")}
    found = {(inside, name) for inside in files.keys() - tables for name in private_reads(files[inside])}
    found = {(inside, name) for inside, name in found if name not in PUBLIC}
    assert not found - PRIVATE_READS.keys(), "do what a user or a fault does instead"
    assert not PRIVATE_READS.keys() - found, "delete these from PRIVATE_READS"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("self._x, cls._y, x.__class__, os._exit(0), row._replace(a=1)", {"_exit", "_replace"}),
        ("self.pool._x, myself._y", {"_x", "_y"}),
        ("made()._x, made[0]._y", {"_x", "_y"}),
        ('setattr(pool, "_x", 1), monkeypatch.setattr("tailor_ray.teacher.pool._y", 1)', {"_x", "_y"}),
        ("from tailor_ray.teacher.pool import Driver, _open", {"_open"}),
    ],
)
def test_a_private_name_is_seen(tmp_path, line, names):
    (tmp_path / "test.py").write_text(f"{line}\n")
    assert set(private_reads(tmp_path / "test.py")) == names
