"""What the pages promise is there: their code runs, their commands and links exist, and they name nobody's machine."""

import os
import re
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import convnn

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for folder in (".", "docs", "results") for page in sorted((ROOT / folder).glob("*.md"))]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".lock", ".json", ".cfg", ".txt", ".sh", ".html", ""}

# Written so that they do not match themselves.
HOSTS = r"py[p]i\.org|pythonhoste[d]\.org|download\.pytorc[h]\.org|anacond[a]\.org|npmj[s]\.(?:org|com)"
FORBIDDEN = {
    "a registry's host": HOSTS,
    "a path of a machine": r"(?:^|[^A-Za-z0-9_.\-/\]])/(?:home|root|tmp|work|Users)/",
    "an index URL": r"--(?:extra-)?index[-]url",
}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page: (line, code)."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match.group(1)) for match in found]


def links(text: str) -> list[str]:
    """Targets of links and pictures that are no web addresses, without anchors; code is left out."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [
        target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target) and not target.startswith("#")
    ]


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))


def make_commands(text: str) -> set[str]:
    """Targets that a page tells to run: `make x`, in code."""
    code = re.findall(r"`[^`\n]+`|^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    return {target for piece in code for target in re.findall(r"(?:^|`|\n)make ([a-z][a-z-]*)", piece)}


def violations(text: str) -> list[str]:
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text, flags=re.MULTILINE)]


def own_files() -> list[Path]:
    """Every text file of the project: all but what .gitignore names (there may be no git)."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    rules = [line.rstrip("/") for line in lines if line and not line.startswith(("#", "!"))]

    def ignored(path: Path) -> bool:
        return any(fnmatch("/" + str(path) if rule.startswith("/") else path.name, rule) for rule in [*rules, ".git"])

    found = []
    for folder, inner, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        inner[:] = [name for name in inner if not ignored(here / name)]
        found += [
            ROOT / here / name for name in files if not ignored(here / name) and Path(name).suffix in TEXT_SUFFIXES
        ]
    return sorted(found)


SNIPPETS = [
    pytest.param(page, line, code, id=f"{page.relative_to(ROOT)}:{line}")
    for page in PAGES
    for line, code in blocks(page, "python")
]


@pytest.mark.parametrize(("page", "line", "code"), SNIPPETS)
def test_code_runs(page, line, code):
    """Each block is closed: it runs on its own."""
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), {"__name__": "snippet"})


def crowded_lines(text: str) -> list[str]:
    """Lines that hold more than one sentence; code, tables and quotations are left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", ">"))]
    return [line for line in lines if re.search(r"[a-z0-9)`*²][.?!]\)? +[A-Z`*]", re.sub(r"`[^`]*`", "`c`", line))]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ("CHANGELOG.md", "DESIGN.md")], ids=lambda page: page.stem
)
def test_one_sentence_a_line(page):
    assert crowded_lines(page.read_text(encoding="utf-8")) == []


def test_readme_first_screen():
    """The first screen has the picture, the one-line swap and the two commands."""
    screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30])
    for promise in ("docs/images/neighbours.png", "convnn.convert(", "make demo", "make test"):
        assert promise in screen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    assert [link for link in links(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()] == []


def test_every_page_of_the_guide_is_linked():
    """From its first page, and in the navigation."""
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages - {"index.md"} <= set(links((ROOT / "docs/index.md").read_text(encoding="utf-8")))
    assert pages == set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))


def public_names(module: ModuleType) -> set[str]:
    """Its `__all__`, or the functions and classes that it defines itself."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }


def reference_names(text: str) -> dict[str, set[str]]:
    """Of each package that has a section, the names in the first column of its tables."""
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        package = re.match(r"convnn(?:\.\w+)*", section)
        rows = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
        names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        found.setdefault(package[0] if package else "convnn", set()).update(names)
    return found


def test_the_reference_is_complete():
    """Every public name of every public package is in its section, and no other."""
    listed = reference_names((ROOT / "docs/reference.md").read_text(encoding="utf-8"))
    packages = ("nn", "models", "accounting", "export", "explain", "train", "testing")
    assert set(listed) == {"convnn", "convnn.errors", *(f"convnn.{name}" for name in packages)}
    for name in packages:
        assert listed[f"convnn.{name}"] == public_names(import_module(f"convnn.{name}")), name
    errors = {name for name in public_names(convnn.errors) if isinstance(getattr(convnn.errors, name), type)}
    assert listed["convnn.errors"] == errors
    everything = set(convnn.__all__) - {"__version__"}
    assert listed["convnn"] | listed["convnn.nn"] | (listed["convnn.errors"] & everything) == everything


def directives(text: str) -> list[tuple[str, list[str]]]:
    """The modules that the reference shows, with the members chosen of each (none: all)."""
    found = re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*?)\]\n)?", text, flags=re.MULTILINE)
    return [(module, members.split(", ") if members else []) for module, members in found]


def test_what_the_reference_shows_exists():
    for module, members in directives((ROOT / "docs/reference.md").read_text(encoding="utf-8")):
        assert [name for name in members if not hasattr(import_module(module), name)] == [], module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page):
    known = make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert make_commands(page.read_text(encoding="utf-8")) - known == set()


def test_every_make_target_is_explained():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert make_targets(makefile) == set(re.findall(r"^([a-z][a-z-]*):.*## \S", makefile, flags=re.MULTILINE))


def test_no_forbidden_words():
    bad = {str(path.relative_to(ROOT)): violations(path.read_text(encoding="utf-8")) for path in own_files()}
    assert {name: found for name, found in bad.items() if found} == {}


def test_own_files_are_found():
    names = {str(path.relative_to(ROOT)) for path in own_files()}
    assert {"README.md", "Makefile", ".ci/run", "src/convnn/types.py", "tests/test_readme.py"} <= names
    assert not any(name.startswith((".venv", ".git/")) for name in names)


# ------------------------------------------------------------------------------------------- every check can fail
def test_checks_can_fail():
    assert violations("see https://py" + "pi.org/project") == ["a registry's host"]
    assert violations("open('/ho" + "me/me/data')") == ["a path of a machine"]
    assert violations("pip install --index" + "-url x") == ["an index URL"]
    assert violations("a path such as src/home/room, and https://example.org/work/shop") == []
    assert links("[a](b.md#c) ![d](e.png) [f](https://x.org) `[g](h)` [i](#j)") == ["b.md", "e.png"]
    assert reference_names("## convnn.nn: a\n| `B`, `C` | `d` |\n## Other\n| `E` | |") == {
        "convnn.nn": {"B", "C"},
        "convnn": {"E"},
    }
    assert directives("::: a.b\n    options:\n      members: [c, d]\n\n::: e\n") == [("a.b", ["c", "d"]), ("e", [])]
    assert crowded_lines("One. Two.\nThree, `a. B`.\n| Four. Five. |\n") == ["One. Two."]
    assert make_commands("`make nonsense` and\n```sh\nmake demo\n```\nmake peace") == {"nonsense", "demo"}
