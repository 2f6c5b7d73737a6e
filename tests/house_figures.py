"""The measures of the house, taken from the source alone, of this checkout or of several.

    python tests/house_figures.py [CHECKOUT...]

Prints a Markdown table with one column per checkout. Only `tailor_ray/**/*.py` is read; nothing is imported from it.
What is counted:

- a public function: at the top of a module or of a public class, its name without a leading underscore;
- a docstring that names arguments, returns or raises: it has an argument's name in backticks, or one of the words
  "returns", "raises" and "yields" with or without its s;
- a private function used once: its name begins with one underscore, and its file refers to it in one place;
- a sentence of a module's docstring: it ends with a full stop, a question mark, a paragraph or a list's item, and
  indented lines are none.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "tailor_ray"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Figures:
    """What was counted, of a checkout or of a room; sums of others by `+=`."""

    modules: int = 0
    lines: int = 0
    short: int = 0  # modules under 60 lines
    public: int = 0
    documented: int = 0  # public functions with a docstring
    multiline: int = 0  # with one of more than one line
    naming: int = 0  # with one that names arguments, returns or raises
    private: int = 0
    used_once: list[str] = field(default_factory=list)  # path:name of the private functions with one use in their file
    lengths: list[int] = field(default_factory=list)  # of all functions, in lines
    words: int = 0
    sentences: int = 0


def source_files(root: Path) -> list[Path]:
    return sorted((root / PACKAGE).rglob("*.py"))


def room_of(path: Path, root: Path) -> str:
    """The first folder below the package, or the module's name."""
    return path.relative_to(root / PACKAGE).parts[0].removesuffix(".py")


def measure(root: Path, files: Iterable[Path]) -> Figures:
    """The figures of these files of the checkout `root`."""
    found = Figures()
    for path in files:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = text.count("\n")
        found.modules += 1
        found.lines += lines
        found.short += lines < 60
        for sentence in _sentences(ast.get_docstring(tree) or ""):
            found.words += len(sentence)
            found.sentences += 1
        _count_functions(tree, found, path.relative_to(root / PACKAGE).as_posix())
    return found


def _count_functions(tree: ast.Module, found: Figures, path: str) -> None:
    uses = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    uses += Counter(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    for node in ast.walk(tree):
        if isinstance(node, Function):
            found.lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
            if node.name.startswith("_") and not node.name.startswith("__"):
                found.private += 1
                found.used_once += [f"{path}:{node.name}"] * (uses[node.name] == 1)
    for node in public_functions(tree.body):
        docstring = ast.get_docstring(node) or ""
        found.public += 1
        found.documented += bool(docstring)
        found.multiline += "\n" in docstring
        found.naming += _names_its_contract(node, docstring)


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Those of a module's or a public class's body."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def _names_its_contract(function: Function, docstring: str) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = any(f"`{one.arg}`" in docstring for one in arguments)
    return named or re.search(r"\b(returns?|raises?|yields?)\b", docstring, re.IGNORECASE) is not None


def _sentences(docstring: str) -> Iterator[list[str]]:
    """The words of each sentence."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        prose = "\n".join(line for line in paragraph.splitlines() if not line.startswith("    "))
        for sentence in re.split(r"[.!?][)\"']*\s+|\n(?=- )", prose):
            words = re.findall(r"\w[\w'’./-]*", sentence)
            if words:
                yield words


def names_in_several_files(root: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Class names, and file names but `__init__.py`, each with the files of the package that have it."""
    classes, names = defaultdict(list), defaultdict(list)
    for path in source_files(root):
        inside = path.relative_to(root / PACKAGE).as_posix()
        names[path.name].append(inside)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(inside)
    del names["__init__.py"]
    return tuple({name: at for name, at in all_.items() if len(set(at)) > 1} for all_ in (classes, names))


def table(root: Path) -> dict[str, str]:
    """Label and value of each measure of a checkout."""
    found = measure(root, source_files(root))
    functions = len(found.lengths)
    classes, files = names_in_several_files(root)
    return {
        "modules": f"{found.modules}",
        "lines": f"{found.lines:,}",
        "modules under 60 lines": f"{found.short / found.modules:.0%}",
        "median function, lines": f"{statistics.median(found.lengths):.0f}",
        "public functions with a docstring": f"{found.documented / found.public:.1%} of {found.public}",
        "… of more than one line": f"{found.multiline / found.documented:.1%} of these",
        "… that names arguments, returns or raises": f"{found.naming / found.documented:.1%} of these",
        "private functions used once": f"{len(found.used_once) / functions:.1%} of {functions:,} functions",
        "words per sentence in module docstrings": f"{found.words / found.sentences:.1f}",
        "class names in several files": f"{len(classes)}",
        "file names in several folders": f"{len(files)}",
    }


def main() -> None:
    roots = [Path(argument) for argument in sys.argv[1:]] or [Path(__file__).parent.parent]
    columns = [table(root) for root in roots]
    lines = [["measure", *(root.absolute().name for root in roots)], ["---"] * (1 + len(roots))]
    lines += [[label, *(column[label] for column in columns)] for label in columns[0]]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
