"""What is easy to lose: imports go downward, tables match the files beside them, the public door, no pickle."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "kirie"

LEVELS = {
    **dict.fromkeys(("errors", "files", "progress", "boxes", "masks", "classes", "results", "weight_map"), 0),
    **dict.fromkeys(("class_lists", "cleanup", "coco_words", "counting", "lookup", "matches", "merging"), 0),
    **dict.fromkeys(("outlines", "run_lengths", "terminal", "yolo_words"), 0),
    "reading": 0,  # of files, for all above
    **dict.fromkeys(("losses", "criterion"), 1),
    **dict.fromkeys(("data", "models", "metrics", "drawing", "demo", "demo_pictures"), 2),
    **dict.fromkeys(("weights", "runtimes"), 3),  # beside the four above, but they may import models
    **dict.fromkeys(("prediction", "conversion"), 4),
    **dict.fromkeys(("recipe", "recipe_sections", "recipe_zoo", "planning"), 4),
    "training": 5,
    **dict.fromkeys(("serve", "export", "distributed"), 6),
    **dict.fromkeys(("cli", "cli_data", "cli_demo", "cli_export", "cli_predict", "cli_results", "cli_weights"), 7),
    "__main__": 8,
}
NEVER_EACH_OTHER = (
    {"data", "models", "metrics", "drawing", "weights"},
    {"prediction", "recipe"},
    {"prediction", "recipe_sections"},
    {"prediction", "planning"},
)
ALLOWED_BESIDE = {("weights", "models")}
KNOW_RECIPES = (
    {"kirie.recipe", "kirie.recipe_sections", "kirie.planning.plan"}
    | {f"kirie.training.{name}" for name in ("fit", "folds", "parts", "planned", "timing")}
    | {f"kirie.{name}" for name in ("cli", "cli_data", "cli_demo")}
)
HEAVY = {
    *("torch", "torchvision", "cv2", "timm", "matplotlib", "scipy"),
    *("fsspec", "nncf", "onnx", "onnxruntime", "openvino", "ray"),
}
MAX_LINES = 450
FORBIDDEN_NAMES = {"core", "utils", "util", "common", "helpers", "misc"}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module an import names, `from . import x` included."""
    if not node.level:
        return node.module or ""
    here = path.relative_to(PACKAGE.parent).parts[:-1]
    base = here[: len(here) - node.level + 1]
    return ".".join((*base, *([node.module] if node.module else [])))


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of kirie that a file imports anywhere in it: in functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = absolute(node, path)
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                if inner in MODULES or not alias.name.startswith("__"):
                    found.add(inner if inner in MODULES else home)
    return frozenset(name for name in found if name.split(".")[0] == "kirie")


def part(module: str) -> str:
    """The first name below `kirie`; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def checked_modules() -> Iterator[tuple[str, Path]]:
    yield from ((name, path) for name, path in MODULES.items() if name != "kirie")


# 1. Imports


def test_every_part_has_a_level():
    unknown = {part(name) for name in MODULES} - set(LEVELS) - {""}
    assert not unknown, f"new parts of kirie need a level in this file: {sorted(unknown)}"


def test_imports_name_modules_that_exist():
    wrong = [f"{name} imports {target}" for name, path in MODULES.items() for target in imports(path) - set(MODULES)]
    assert not wrong, "\n".join(sorted(wrong))


def test_imports_only_go_downward():
    wrong = []
    for name, path in checked_modules():
        for target in imports(path):
            level, below = LEVELS.get(part(name), 0), LEVELS.get(part(target), 0)
            # The package itself is a door to every part: only what stands above them all may go through it.
            if below > level or (target == "kirie" and level < LEVELS["serve"]):
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_parts_that_meet_in_the_result_types_never_import_each_other():
    wrong = []
    for name, path in checked_modules():
        for target in imports(path):
            pair = (part(name), part(target))
            for group in NEVER_EACH_OTHER:
                if pair[0] != pair[1] and set(pair) <= group and pair not in ALLOWED_BESIDE:
                    wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_only_few_files_know_recipes():
    knowing = {name for name, path in checked_modules() if {"kirie.recipe", "kirie.recipe_sections"} & imports(path)}
    assert knowing <= KNOW_RECIPES, sorted(knowing - KNOW_RECIPES)


# 2. Cycles


def test_no_import_cycles():
    graph = {name: imports(path) - {name, "kirie"} for name, path in checked_modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# 3. Written tables

TARGET = re.compile(r"kirie(\.\w+)+:\w+")


def rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Table, key and `module:Thing` of every literal table of such rows in a file."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and TARGET.fullmatch(value.value):
                    yield ast.unparse(target), ast.literal_eval(key), value.value


ROWS = [(module_name(path), *row) for path in FILES if path.name == "__init__.py" for row in rows(path)]


@pytest.mark.parametrize(
    "table",
    [
        "kirie.models.MODELS",
        "kirie.data.DATASETS",
        "kirie.metrics.METRICS",
        "kirie.conversion.WRITERS",
        "kirie.runtimes.RUNTIMES",
        "kirie.export.TARGETS",
    ],
)
def test_each_kind_has_its_written_table(table):
    assert table in {f"{module}.{name}" for module, name, _, _ in ROWS}


@pytest.mark.parametrize(("home", "table", "key", "target"), ROWS, ids=[f"{r[1]}-{r[2]}" for r in ROWS])
def test_every_row_leads_to_something_beside_its_table(home, table, key, target):
    module, _, attribute = target.partition(":")
    assert module.startswith(f"{home}."), f"{home}.{table}[{key!r}] leads out of its package"
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize(
    ("folder", "pattern", "parts"),
    [
        ("models", "*.py", {"__init__", "contract", "device", "file", "memory", "overview"}),
        ("weights", "from_*.py", set()),
    ],
)
def test_every_file_of_a_kind_is_reached_by_a_row(folder, pattern, parts):
    reached = {target.partition(":")[0] for *_, target in ROWS}
    files = {module_name(path) for path in (PACKAGE / folder).glob(pattern) if path.stem not in parts}
    assert files, f"no files {pattern} in kirie/{folder}"
    assert files <= reached, f"no row leads to {sorted(files - reached)}"


# 4. The public door


def test_the_public_names_are_those_that_kirie_offers():
    kirie = importlib.import_module("kirie")
    assert kirie.__all__ == sorted(set(kirie.__all__)), "__all__ is sorted, each name once"
    typed = {
        alias.asname or alias.name
        for node in tree(PACKAGE / "__init__.py").body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(kirie.__all__), "what type checkers see is what __all__ says"
    with pytest.raises(AttributeError):
        _ = kirie.no_such_name


@pytest.mark.parametrize("name", getattr(importlib.import_module("kirie"), "__all__", ()))
def test_every_public_name_is_there_and_stays_itself_once_its_modules_are_imported(name):
    kirie = importlib.import_module("kirie")
    first = getattr(kirie, name)
    importlib.import_module(getattr(first, "__module__", None) or "kirie")
    assert getattr(kirie, name) is first
    assert f"kirie.{name}" not in MODULES, f"the module kirie.{name} would hide the name {name}"


# 5. Names


def test_no_module_has_a_name_that_says_nothing():
    wrong = [str(path) for path in FILES if set(path.relative_to(PACKAGE).with_suffix("").parts) & FORBIDDEN_NAMES]
    assert not wrong


# 6. Light imports


@pytest.mark.parametrize("module", ["kirie", "kirie.cli"])
def test_the_door_is_light(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# 7. Length


def lines_without_tables(path: Path) -> int:
    """Lines of a file, literal tables and texts at its top level aside."""
    literals = (ast.Dict, ast.Tuple, ast.List, ast.Set, ast.Constant)
    tables = [
        node.end_lineno - node.lineno
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, literals)
    ]
    return len(path.read_text(encoding="utf-8").splitlines()) - sum(tables)


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_files_are_short(path):
    assert lines_without_tables(path) < MAX_LINES


# 8. No code from files


def called(node: ast.Call) -> str:
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def safe_loaders(path: Path) -> set[str]:
    """Names of YAML loaders that make plain values only: the safe ones and classes of the file made from them."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader", "CSafeLoader"}
    own = {
        node.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and node.bases and {ast.unparse(base) for base in node.bases} <= safe
    }
    return safe | own


def dangers(path: Path) -> Iterator[str]:
    """What in a file could run code that a data file, a recipe or a model file names."""
    for node in ast.walk(tree(path)):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {(node.module or "").split(".")[0]}
        yield from (f"line {node.lineno}: {name}" for name in names & PICKLES)
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            name in {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}
            or name in {"yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"}
            or (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
        ):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"
        if name in {"yaml.load", "yaml.load_all"}:
            loader = given.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
            if loader not in safe_loaders(path):
                yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_no_file_can_name_code_to_run(path):
    assert list(dangers(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "import torch.nn, _pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.FullLoader)",
        "yaml.unsafe_load(text)",
        "numpy.load(path, allow_pickle=True)",
        "eval('1')",
        "exec(text)",
    ],
)
def test_the_guard_sees(line, tmp_path):
    (tmp_path / "bad.py").write_text(line)
    assert list(dangers(tmp_path / "bad.py"))


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "class Reader(yaml.SafeLoader): pass\nyaml.load(text, Loader=Reader)",
        "numpy.load(path, allow_pickle=False)",
        "re.compile('a')",
    ],
)
def test_the_guard_lets_pass(line, tmp_path):
    (tmp_path / "good.py").write_text(line)
    assert list(dangers(tmp_path / "good.py")) == []
