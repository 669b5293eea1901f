"""The rules of DESIGN.md: import levels, the length of files and functions, no state in forward.

The checkers below take source code, so that a test shows on a small tree that every rule can fail.
DESIGN.md has the table that `LEVELS` restates.
"""

import ast
import io
import os
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "convnn"

LEVELS = {
    "errors": 0,
    "maps": 0,
    "types": 0,
    "_precision": 0,
    "_tracing": 0,
    "_checks": 1,
    "native": 1,
    "ops": 1,
    "_options": 1,
    "_resolve": 1,
    "_plan": 1,
    "_nearest": 1,
    "stages": 1,
    "impl": 2,
    "knn": 3,
    "nn": 4,
    "_utils": 4,
    "_swap": 5,
    "_convert": 5,
    "accounting": 5,
    "models": 5,
    "train": 5,
    "demo": 5,
    "explain": 5,
    "bench": 5,
    "export": 5,
    "_info": 5,
    "testing": 5,
    "arguments": 6,
    "cli": 6,
}
# Packages of a level that see less than everything below it; errors and types are open to all.
SEES = {
    "errors": (),
    "maps": ("errors",),
    "types": ("errors", "maps"),
    "_precision": (),
    "native": ("native",),
    "ops": ("ops", "native", "_precision"),
    "_tracing": (),
    "_options": ("_checks",),
    "_resolve": ("_checks", "_options"),
    "_plan": ("_precision", "_tracing", "stages"),
    "_nearest": ("_plan", "native", "_precision", "ops", "stages"),
    "knn": ("_checks", "_tracing", "_options", "_resolve", "impl.choose"),
    "nn": ("nn", "knn", "_checks", "_options", "_precision", "_tracing", "stages.geometry"),
    "_utils": ("_utils", "_checks"),
    "testing": (),
}
# Internal, though their names have no underscore: docs/reference.md lists them.
INTERNAL = {"arguments", "cli", "impl", "native", "ops", "stages", "bench", "demo"}
OPTIONAL_FROM = 5  # the first level that may use anything but the standard library and torch

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 3  # of public functions and constructors; tensors, self, cls and ctx do not count
MAX_POSITIONAL_PRIVATE = 5  # of helpers, whose calls all stand in one file
POSITIONAL_EXCEPTIONS = {
    # The layers that these replace take so many, in the same order.
    ("nn.convnn", "__init__"): 11,
    ("nn.hybrid", "__init__"): 11,
    ("nn.attention", "__init__"): 14,
    ("nn.hybrid_attention", "__init__"): 14,
    ("nn.multihead", "__init__"): 11,
    ("errors", "invalid"): 4,  # the four parts of a message
    ("errors", "unknown_name"): 4,
}

TENSOR_WORDS = {
    "Tensor",
    "LongTensor",
    "BoolTensor",
    "Neighbors",
    "Optional",
    "Sequence",
    "Iterable",
    "list",
    "tuple",
    "torch",
}


class Import(NamedTuple):
    """One import: the module that has it, what it names, whether it runs when the module is imported, and the line."""

    module: str
    target: str
    at_import: bool
    line: int


# ----------------------------------------------------------------------------------------------------- reading the code
def read_tree(folder: Path) -> dict[str, str]:
    """Source by module name without "convnn.": "knn", "impl.dense"; "impl" is its __init__, "" convnn's own."""
    tree = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        tree[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return tree


def imports(tree: dict[str, str]) -> Iterator[Import]:
    """Every import of every module, those inside functions and by `import_module("...")` too."""
    for module, source in tree.items():
        parsed = ast.parse(source)
        deferred = {
            inner
            for node in ast.walk(parsed)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for inner in ast.walk(node)
        }
        for node in ast.walk(parsed):
            for target in _targets(node, module, tree):
                yield Import(module, target, node not in deferred, node.lineno)


def _targets(node: ast.AST, module: str, tree: dict[str, str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [_resolve(alias.name, None, tree) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = module == "" or any(name.startswith(module + ".") for name in tree)
            here = ["convnn", *module.split(".")] if module else ["convnn"]
            anchor = here[: len(here) - node.level + is_package]
            base = ".".join([*anchor, base] if base else anchor)
        return [_resolve(base, alias.name, tree) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [_called(node, module, tree)]
    return []


def _called(node: ast.Call, module: str, tree: dict[str, str]) -> str:
    """What `import_module` loads: a name that can be read, or some sibling of the module that calls it."""
    name = node.args[0] if node.args else None
    first = name.values[0] if isinstance(name, ast.JoinedStr) and name.values else name
    if not isinstance(first, ast.Constant):
        return "<computed>"
    sibling = first.value.startswith(".") and not first.value.startswith("..")
    if sibling and len(node.args) == 2 and ast.unparse(node.args[1]) == "__package__":
        return f"{module.rpartition('.')[0]}.<computed>"
    return _resolve(first.value, None, tree) if first is name else "<computed>"


def _resolve(base: str, name: str | None, tree: dict[str, str]) -> str:
    """The module that is meant: `from convnn.impl import dense` is impl.dense, `from convnn import x` is convnn:x."""
    if base.split(".")[0] != "convnn":
        return "ext:" + base
    inner = base.removeprefix("convnn").removeprefix(".")
    submodule = ".".join(filter(None, [inner, name]))
    return submodule if submodule in tree else inner or f"convnn:{name}"


def package_of(module: str) -> str:
    """The first part of a module's name: impl.dense is in impl."""
    return module.split(".")[0]


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# ------------------------------------------------------------------------------------------------------------ the rules
def level_violations(tree: dict[str, str]) -> list[str]:
    """Imports that go up, sideways, or into a package that the importer does not see."""
    return [
        f"{found.module or '__init__'}:{found.line} imports {found.target}: {reason}"
        for found in imports(tree)
        if not found.target.startswith("ext:") and (reason := _refusal(found))
    ]


def _refusal(found: Import) -> str | None:
    source, target, here, there = found.module, found.target, package_of(found.module), package_of(found.target)
    if target == ".<computed>" and source in ("cli", ""):
        return None  # the command line looks its commands up by name, the package its public names
    if target in ("<computed>", ".<computed>"):
        return "a computed import cannot be checked"
    if there == "cli":
        return "nothing imports cli"
    if not source:  # the package's own __init__ gathers the public names
        return None if target.startswith("convnn:") is False and there in LEVELS else "only packages with a level"
    if here not in LEVELS or (there not in LEVELS and not target.startswith("convnn:")):
        return "a package without a level: give it one in DESIGN.md and here"
    if target.startswith("convnn:"):
        allowed = LEVELS[here] > 5 or (LEVELS[here] == 5 and target == "convnn:__version__")
        return None if allowed else "import from the module, not from convnn's __init__"
    if source == "impl.reference":
        known = ("types", "maps", "impl.base")
        return None if target in known else "the reference imports torch, the types and its interface only"
    if source in ("stages", "impl"):
        return None if source == here == there == "stages" else "this package's __init__ stays empty"
    if here in SEES:
        seen = (*SEES[here], "types", "maps", "errors") if here not in ("errors", "types", "maps") else SEES[here]
        return (
            None if any(target == name or target.startswith(name + ".") for name in seen) else f"{here} does not see it"
        )
    if here == there:
        if here == "stages":
            return "stages do not import each other"
        if here == "impl":
            interface = target == "impl.base" or source == "impl.choose"
            return None if interface else "implementations do not import each other; choose alone knows them"
        return None
    if here in ("_checks", "stages") and LEVELS[there] > 0:
        return "level 1 sees level 0 only"
    if there == "testing":
        return "testing is for tests and benchmarks"
    return (
        None
        if LEVELS[there] < LEVELS[here] or LEVELS[here] == LEVELS[there] == 5
        else "a lower level imports a higher one"
    )


def dependency_violations(tree: dict[str, str], declared: set[str]) -> list[str]:
    """Packages used below OPTIONAL_FROM other than torch, and packages that pyproject.toml does not declare."""
    bad = []
    for found in imports(tree):
        package = found.target.removeprefix("ext:").split(".")[0]
        if not found.target.startswith("ext:") or package in sys.stdlib_module_names or package == "torch":
            continue
        where = f"{found.module or '__init__'}:{found.line} imports {package}"
        if LEVELS.get(package_of(found.module), 0) < OPTIONAL_FROM:
            bad.append(f"{where}: below level {OPTIONAL_FROM} there is torch only")
        elif package not in declared:
            bad.append(f"{where}: no extra of pyproject.toml declares it")
    return bad


def cycles(tree: dict[str, str]) -> list[str]:
    """Modules that reach themselves through imports, those inside functions too."""
    return _in_a_cycle((found.module, found.target) for found in imports(tree) if found.target in tree)


def package_cycles(tree: dict[str, str]) -> list[str]:
    """Packages that reach themselves through imports of other packages, those inside functions too."""
    pairs = ((package_of(found.module), package_of(found.target)) for found in imports(tree) if found.target in tree)
    return _in_a_cycle((here, there) for here, there in pairs if here != there)


def _in_a_cycle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Names that reach themselves; the package's own __init__, which gathers the public names, is left out."""
    graph: dict[str, set[str]] = {}
    for source, target in edges:
        if source and target:
            graph.setdefault(source, set()).add(target)

    def reaches(start: str) -> bool:
        seen, stack = set(), list(graph[start])
        while stack:
            name = stack.pop()
            if name == start:
                return True
            if name not in seen:
                seen.add(name)
                stack.extend(graph.get(name, ()))
        return False

    return [name for name in graph if reaches(name)]


def long_files(tree: dict[str, str]) -> list[str]:
    lengths = {module: len(source.splitlines()) for module, source in tree.items()}
    return [f"{module}: {lines} lines" for module, lines in lengths.items() if lines > MAX_FILE_LINES]


def code_lines(source: str) -> set[int]:
    """Lines that hold code: no blank lines, comments or docstrings."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def long_functions(tree: dict[str, str]) -> list[str]:
    bad = []
    for module, source in tree.items():
        lines = code_lines(source)
        for node in functions(source):
            count = len(lines.intersection(range(node.lineno, node.end_lineno + 1)))
            if count > MAX_FUNCTION_LINES:
                bad.append(f"{module}.{node.name}: {count} lines of code")
    return bad


def _is_tensor(annotation: ast.expr | None) -> bool:
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    words = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}
    return bool(words & {"Tensor", "LongTensor", "BoolTensor", "Neighbors"}) and words <= TENSOR_WORDS


def too_many_positional(tree: dict[str, str]) -> list[str]:
    """Functions that take too many parameters by position."""
    bad = []
    for module, source in tree.items():
        for node in functions(source):
            given = [arg for arg in (*node.args.posonlyargs, *node.args.args) if arg.arg not in ("self", "cls", "ctx")]
            count = sum(not _is_tensor(arg.annotation) for arg in given)
            private = node.name.startswith("_") and not node.name.startswith("__")
            limit = MAX_POSITIONAL_PRIVATE if private else MAX_POSITIONAL
            if count > POSITIONAL_EXCEPTIONS.get((module, node.name), limit):
                bad.append(f"{module}.{node.name}: {count} positional parameters that are no tensors")
    return bad


def asserts(tree: dict[str, str]) -> list[str]:
    """Assert statements: they vanish under `python -O`, and say nothing to the user."""
    return [
        f"{module}:{node.lineno} asserts"
        for module, source in tree.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
    ]


def stateful_forwards(tree: dict[str, str]) -> list[str]:
    """`forward` and `neighbors` that write to self."""
    bad = []
    for module, source in tree.items():
        for node in functions(source):
            if node.name not in ("forward", "neighbors"):
                continue
            for inner in ast.walk(node):
                written = isinstance(inner, ast.Attribute) and not isinstance(inner.ctx, ast.Load)
                called = isinstance(inner, ast.Call) and ast.unparse(inner.func) in (
                    "setattr",
                    "object.__setattr__",
                    "self.register_buffer",
                    "self.__setattr__",
                )
                if (written and ast.unparse(inner.value).split(".")[0] == "self") or called:
                    bad.append(f"{module}:{inner.lineno} {node.name} writes to self")
    return bad


def device_branches(tree: dict[str, str]) -> list[str]:
    """Questions about the device or the backend in stages."""
    asked = ("is_cuda", "is_mps", "is_xpu", "is_cpu")
    return [
        f"{module}:{node.lineno} asks for {ast.unparse(node)}"
        for module, source in tree.items()
        if package_of(module) == "stages"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and (node.attr in asked or ast.unparse(node).endswith(("device.type", "torch.cuda", "torch.backends")))
    ]


# ------------------------------------------------------------------------------------------------- the source as it is
TREE = read_tree(SOURCE)


def declared_packages() -> set[str]:
    """Import names of what pyproject.toml's dependencies and extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    names = {item.split("[")[0].split(">")[0].split("!")[0].split("=")[0].strip() for item in asked}
    imported_as = {"scikit-learn": "sklearn", "pyyaml": "yaml", "faiss-cpu": "faiss"}
    brought = {"numpy", "PIL", "huggingface_hub"}  # by scikit-learn, by torchvision, by timm
    return {imported_as.get(name, name).replace("-", "_") for name in names} | brought


def test_the_source_is_read():
    assert {"types", "errors", "impl.reference"} <= set(TREE)


def test_levels():
    assert level_violations(TREE) == []


def test_dependencies():
    assert dependency_violations(TREE, declared_packages()) == []


@pytest.mark.parametrize(
    "rule",
    [
        cycles,
        package_cycles,
        long_files,
        long_functions,
        too_many_positional,
        asserts,
        stateful_forwards,
        device_branches,
    ],
    ids=lambda rule: rule.__name__,
)
def test_rule(rule):
    assert rule(TREE) == []


def test_importing_convnn_imports_torch_only():
    """No optional package, and nothing of convnn that needs one, is loaded by `import convnn`."""
    optional = sorted(declared_packages() - {"torch", "numpy", "convnn"})
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import convnn\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        f"print(sorted(new & set({optional!r})))\n"
        "print(sorted(name for name in sys.modules if name in ('convnn.cli', 'convnn.testing')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_design_names_every_package():
    """DESIGN.md's tree and the levels here name the same packages."""
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    assert [name for name in LEVELS if name not in text] == []
    assert [name for name in {package_of(module) for module in TREE} - {""} if name not in LEVELS] == []


def unmarked(tree: dict[str, str], reference: str) -> list[str]:
    """Modules that are no API, by docs/reference.md, and whose names do not begin with an underscore."""
    names = {package_of(module) for module in tree} - {"", *INTERNAL}
    return sorted(name for name in names if not name.startswith("_") and f"convnn.{name}" not in reference)


def test_internal_modules_begin_with_an_underscore():
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert unmarked(TREE, reference) == []
    assert [name for name in sorted(INTERNAL) if f"`convnn.{name}`" not in reference] == []
    assert unmarked({"helpers": ""}, reference) == ["helpers"]


# ------------------------------------------------------------------------------------------------ every rule can fail
def violations(module: str, source: str) -> list[str]:
    """Level violations of one module in a small tree."""
    names = ("", "types", "errors", "_checks", "stages", "stages.select", "stages.geometry", "impl", "impl.dense")
    names += ("native", "native.build", "native.loading")
    names += ("ops", "ops.nearest", "ops.native", "ops.native.search", "_utils", "_utils.modules")
    names += ("impl.choose", "impl.reference", "knn", "nn", "nn.convnn")
    names += ("_convert", "models", "cli", "testing")
    return level_violations({**dict.fromkeys(names, ""), module: source})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "from .types import Random"),
        ("types", "from . import knn"),
        ("_checks", "from .stages import select"),
        ("stages.select", "from .geometry import grid"),
        ("stages.select", "from . import geometry"),
        ("stages.select", "import convnn.stages.geometry as g"),
        ("stages.select", "from .._checks import shape"),
        ("impl.dense", "from .reference import knn_search"),
        ("impl.dense", "def f():\n    from convnn.impl import reference"),
        ("impl.dense", "from ..knn import knn_search"),
        ("impl.choose", "import importlib\ndef f(name): return importlib.import_module(name)"),
        ("impl.dense", "import importlib\ndef f(name): return importlib.import_module(f'.{name}', __package__)"),
        ("impl.reference", "from ..errors import invalid"),
        ("impl.reference", "from ..stages import select"),
        ("impl", "from .dense import search"),
        ("native.loading", "from ..ops.nearest import nearest"),
        ("native.loading", "from .._checks import shape"),
        ("knn", "from .impl import dense"),
        ("knn", "def f():\n    from .stages.select import topk"),
        ("nn.convnn", "from ..impl.choose import choose_impl"),
        ("nn.convnn", "from ..stages import select"),
        ("nn.convnn", "from .. import knn_search"),
        ("_utils.modules", "from ..nn import ConvNN2d"),
        ("_utils.files", "def f():\n    from ..models import create_model"),
        ("nn.convnn", "from .._utils.modules import put"),
        ("_convert", "import convnn.cli"),
        ("_convert", "from .testing import tie_free"),
        ("_convert", "from convnn import ConvNN2d"),
        ("extra", "x = 1\nfrom .types import Random"),
        ("", "from .cli import main"),
    ],
)
def test_levels_can_fail(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("types", "from .errors import invalid"),
        ("stages.select", "from ..types import Random\nfrom ..errors import invalid\nimport math, torch"),
        (
            "impl.dense",
            "from ..stages import select, geometry\nfrom .._checks import shape\nfrom ..ops.nearest import nearest",
        ),
        ("ops.nearest", "from .. import native"),
        ("native.loading", "from ..errors import invalid\nfrom . import build\nimport ctypes, torch"),
        ("ops.native.search", "from ..nearest import nearest\nfrom ... import native\nfrom . import slots"),
        (
            "impl.choose",
            "def f():\n    from . import dense\n    import importlib\n    importlib.import_module('convnn.impl.dense')",
        ),
        ("impl.choose", "import importlib\ndef f(name): return importlib.import_module(f'.{name}', __package__)"),
        ("impl.reference", "import math\nimport torch\nfrom ..types import Search"),
        ("knn", "from . import _checks\nfrom .impl import choose\nfrom .impl.choose import choose_impl"),
        ("nn.hybrid", "from .convnn import ConvNN2d\nfrom ..stages import geometry\nfrom ..knn import knn_search"),
        ("_utils.settings", "from ..errors import invalid\ndef f():\n    from .. import _checks"),
        ("models", "from .._utils.modules import put"),
        ("models", "from .._convert import convert\nfrom convnn import __version__"),
        ("cli", "from convnn import knn_search, convert"),
        ("", "from .knn import knn_search\nfrom .nn import ConvNN2d"),
    ],
)
def test_levels_allow(module, source):
    assert violations(module, source) == []


def test_dependencies_can_fail():
    assert dependency_violations({"knn": "import torch, math\nimport numpy"}, {"numpy"}) != []
    assert dependency_violations({"nn.convnn": "def f():\n    import timm"}, {"timm"}) != []
    assert dependency_violations({"_convert": "def f():\n    import pandas"}, {"timm"}) != []
    assert dependency_violations({"_convert": "def f():\n    import timm.layers"}, {"timm"}) == []


def test_cycles_can_fail():
    both = {"_convert", "models"}
    assert set(cycles({"_convert": "from .models import x", "models": "from ._convert import y"})) == both
    assert set(cycles({"_convert": "from .models import x", "models": "def f(): from ._convert import y"})) == both
    assert cycles({"_convert": "from .models import x", "models": "import torch"}) == []
    inside = {"train": "", "train.run": "def f(): from . import data", "train.data": "from .run import x"}
    assert set(cycles(inside)) == {"train.run", "train.data"}


def test_package_cycles_can_fail():
    tree = {"train": "", "train.run": "", "train.json": "", "accounting": "", "accounting.profile": ""}
    tree["train.run"] = "from ..accounting.profile import profile"
    assert package_cycles(tree) == []
    tree["accounting.profile"] = "def f(): from ..train.json import to_json"
    assert cycles(tree) == []  # no module reaches itself, but each package needs the other
    assert set(package_cycles(tree)) == {"train", "accounting"}


def test_long_files_can_fail():
    assert long_files({"a": "x = 1\n" * 301}) == ["a: 301 lines"]
    assert long_files({"a": "x = 1\n" * 300}) == []


def test_long_functions_can_fail():
    def body(n):
        return 'def f(a,\n      b):\n    """Two\n    lines."""\n    # a comment\n\n' + "    x = (1,\n         2)\n" * n

    assert long_functions({"a": body(29)}) == []
    assert long_functions({"a": body(30)}) == ["a.f: 62 lines of code"]
    assert long_functions({"a": "class C:\n    def m(self):\n" + "        x = 1\n" * 60}) == ["a.m: 61 lines of code"]


def test_positional_can_fail():
    assert too_many_positional({"a": "def f(self, a, b, c): ..."}) == []
    assert too_many_positional({"a": "def f(a, b, c, d): ..."}) != []
    assert too_many_positional({"a": "def f(q: Tensor, k: 'Tensor | None', near: Neighbors, a, b, c, *, d): ..."}) == []
    assert too_many_positional({"a": "def f(q: Callable[[Tensor], Tensor], a, b, c): ..."}) != []
    assert too_many_positional({"a": "def _f(a, b, c, d, e): ..."}) == []
    assert too_many_positional({"a": "def _f(a, b, c, d, e, f): ..."}) != []
    assert too_many_positional({"a": "class A:\n    def __init__(self, a, b, c, d): ..."}) != []
    assert too_many_positional({"nn.hybrid": "class H:\n    def __init__(self, a, b, c, d): ..."}) == []


def test_asserts_can_fail():
    assert asserts({"a": "def f(x):\n    assert x > 0"}) == ["a:2 asserts"]


@pytest.mark.parametrize(
    "line",
    [
        "self.grid = x.shape",
        "self.calls += 1",
        "self.cache.grid = 1",
        "setattr(self, 'a', 1)",
        "del self.a",
        "self.a: int = 1",
    ],
)
def test_stateful_forward_can_fail(line):
    assert stateful_forwards({"nn.a": f"class A:\n    def forward(self, x):\n        {line}\n        return x"}) != []
    assert stateful_forwards({"nn.a": f"class A:\n    def __init__(self, x):\n        {line}"}) == []


@pytest.mark.parametrize("line", ["x.is_cuda", "x.device.type == 'cuda'", "torch.cuda.is_available()"])
def test_device_branches_can_fail(line):
    assert device_branches({"stages.select": f"if {line}: pass"}) != []
    assert device_branches({"impl.dense": f"if {line}: pass"}) == []
