"""What the documents say can be done: each link leads somewhere, each command and each setting is one that is taken."""

import re
import shlex

import pytest
import typer.main
from typer.exceptions import TyperException

from tailor_ray.cli import app
from tailor_ray.config import RunConfig, load_config
from tailor_ray.errors import ConfigError
from tests.makefile import ROOT, make

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "jobs").rglob("*.md"), *(ROOT / "cluster").rglob("*.md")])
JOBS = [path for path in sorted((ROOT / "jobs").glob("*.yaml")) if path.name != "runtime-env.yaml"]
EXAMPLES = re.compile(r"Example: (.+)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language=None):
    found = BLOCK.findall(path.read_text())
    return [text for kind, text in found if language is None or kind == language]


def inline(path):
    return INLINE.findall(BLOCK.sub("", path.read_text()))


def anchors(path):
    """What a heading is linked by: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_each_link_to_a_file_or_a_heading_leads_there(path):
    text = BLOCK.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in anchors(there), f"{target}: {name_of(there)} has no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_each_file_that_a_document_names_by_its_path_is_there(path):
    for word in inline(path):
        if re.fullmatch(r"(tailor_ray|jobs|tests|cluster)/[\w./-]+", word):
            assert (ROOT / word).exists(), f"`{word}`: there is no such file"


def accept(line, complete):
    """Have the command line's own parser read a command; nothing runs. `complete`: it can be typed as it stands."""
    words = shlex.split(line)
    assert words[0] == "tailor-ray"
    command = typer.main.get_command(app)
    words = [word for word in words[1:] if word != "…"]  # which stands for more of the same
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{line}: there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    if not words and not complete:
        return
    try:
        context = command.make_context(line, list(words))
    except TyperException as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise AssertionError(f"{line}: {error}") from None
        return
    if context.params.get("set_"):
        job = ROOT / str(context.params.get("config"))
        load_config(job if job.exists() else None, context.params["set_"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tailor-ray runn jobs/demo.yaml", "no command 'runn'"),
        ("tailor-ray run", "Missing parameter: config"),
        ("tailor-ray run jobs/demo.yaml --sett a=1", "No such option: --sett"),
        ("tailor-ray run jobs/demo.yaml --set exam.sample=3", "did you mean 'samples'"),
        ("tailor-ray serve runs/demo --port high", "integer"),
    ],
)
def test_a_wrong_command_is_seen(line, said):
    with pytest.raises((AssertionError, ConfigError), match=said):
        accept(line, complete=True)


def whole_commands(path):
    """Lines of a document's blocks, or of a job file's head, that are typed as they stand."""
    text = "\n".join(blocks(path)) if path.suffix == ".md" else path.read_text().replace("\n#", "\n")
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith("tailor-ray ")]


@pytest.mark.parametrize("path", [*DOCUMENTS, *JOBS], ids=name_of)
def test_each_command_is_one_that_the_command_line_takes(path):
    for line in whole_commands(path):
        accept(line, complete=True)
    for word in inline(path) if path.suffix == ".md" else ():
        if word.startswith("tailor-ray "):
            accept(word, complete=False)


def test_each_commands_own_example_is_taken():
    examples = [command.epilog or "" for command in commands(typer.main.get_command(app))]
    assert len(examples) >= 16
    for found in filter(None, map(EXAMPLES.search, examples)):
        for line in re.sub(r" >.*", "", found[1]).split("; "):
            accept(line, complete=True)


def commands(command):
    for inner in getattr(command, "commands", {}).values():
        yield inner
        yield from commands(inner)


def test_the_readme_has_each_command_in_its_table():
    table = re.search(r"## Commands\n(.+?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    cells = [cell for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for cell in INLINE.findall(row)]
    lines = [cell if cell.startswith("tailor-ray ") else f"tailor-ray {cell}" for cell in cells]
    for line in lines:
        accept(line, complete="…" not in line)
    shown = {line.split()[1] for line in lines}
    assert shown == {name for name, one in typer.main.get_command(app).commands.items() if not one.hidden}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.parent.name != "cluster"], ids=name_of)
def test_each_yaml_block_is_a_configuration_without_old_spellings(path, tmp_path, caplog):
    for number, text in enumerate(blocks(path, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        load_config(file)
    assert not caplog.text


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_each_job_is_a_configuration_without_old_spellings(path, caplog):
    load_config(path)
    assert not caplog.text


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name_of)
def test_each_setting_that_a_document_names_is_one(path):
    known = {name: getattr(one.annotation, "model_fields", {}) for name, one in RunConfig.model_fields.items()}
    for word in inline(path):
        setting = re.fullmatch(r"(\w+)\.(\w+)(?:\.\w+)*(?:[:=] ?\S.*)?", word)
        if setting and known.get(setting[1]) and setting[2] not in ("yaml", "json"):
            assert setting[2] in known[setting[1]], f"`{word}`: there is no such setting"


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name_of)
def test_each_make_target_that_a_document_names_is_one(path):
    said = {words[5:] for words in inline(path) if words.startswith("make ")}
    said |= {line.strip()[5:] for text in blocks(path) for line in text.splitlines() if line.startswith("make ")}
    for words in said:
        done = make("-n", *shlex.split(words.partition("#")[0]))
        assert done.returncode == 0, f"make {words}: {done.stderr}"
