"""``convnn recipes``: the recipes and the studies of the package as a table, or the file of one of them."""

from __future__ import annotations

from ...errors import missing_extra
from . import Recipe, find_file, list_recipes, list_studies
from .settings import RecipesSettings

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError as error:
    raise missing_extra("rich", "cli") from error


def run_recipes(settings: RecipesSettings) -> None:
    """Print the table, or the file of the one that is named."""
    console = Console()
    if settings.name:
        print(find_file(settings.name).read_text(encoding="utf-8").rstrip())
        return
    console.print(_table("Recipes: convnn train NAME", list_recipes()))
    console.print()
    console.print(_table("Studies: convnn sweep NAME", list_studies()))
    console.print("\nconvnn recipes NAME prints the file; a copy of it, changed, is trained by its path.")


def _table(title: str, recipes: list[Recipe]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=False, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("source", "expected result", "cost"):
        table.add_column(column, ratio=1)
    for recipe in recipes:
        cells = [recipe.about.get(key, "") for key in ("source", "expected", "cost")]
        table.add_row(recipe.name, *map(escape, cells))
    return table
