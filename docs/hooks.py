"""What the documentation takes from the code, so that no page is stale.

A page of docs/ says where with a line such as `<!-- generated: methods -->`; the functions in
`TABLES` write what stands there. `<!-- include: LAB.md -->` puts in a file of the repository's
root, with its links turned into links of the site, and each notebook becomes a page.
"""

import json
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "neutral_residues"
PAGES_OF_THE_ROOT = {"README": "index", "LAB": "lab"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every notebook."""
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path))
        files.append(page)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts in what is generated and what is included."""
    markdown = re.sub(r"<!-- include: (\S+) -->", lambda m: included(m[1]), markdown)
    return re.sub(r"<!-- generated: (\S+) -->", lambda m: TABLES[m[1]](), markdown)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text and its code."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [
        "".join(cell["source"])
        if cell["cell_type"] == "markdown"
        else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest])


def included(name: str) -> str:
    """A file of the repository's root; a link to such a file or into docs/ stays within the
    site."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")

    def link(match: re.Match[str]) -> str:
        stem = match[1]
        return f"]({PAGES_OF_THE_ROOT.get(stem, stem.lower())}.md"

    return re.sub(r"\]\(([A-Z]+)\.md", link, text)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
    )


# ---- run file and comparison file ----


def settings_reference(schema: Any, key: str = "", known: dict[Any, str] | None = None) -> str:
    """One table for each section: key, type, default and the docstring under the field.

    Args:
        schema: the settings class.
        key: where it stands in the file.
        known: sections described so far -> where; each kind is described once.
    """
    known = {} if known is None else known
    rows, sections = [], []
    for name, field in schema.model_fields.items():
        path, section = f"{key}.{name}".removeprefix("."), nested_settings(field.annotation)
        about = one_line(field.description)
        default = "**required**"
        if not field.is_required():
            default = f"`{shown(field.get_default(call_default_factory=True))}`"
        if section is None:
            rows.append([f"`{path}`", type_name(field.annotation, field.metadata), default, about])
            continue
        is_list = get_origin(field.annotation) is tuple
        path += "[]" if is_list else ""
        if section not in known:
            known[section] = path
            title = f"## `{path}` {{ #{anchor(path)} }}"
            sections.append(f"{title}\n\n{settings_reference(section, path, known)}")
        kind = "list of" if is_list else "section"
        link = f"{kind} [`{known[section]}`](#{anchor(known[section])})"
        shown_default = default if is_list else ""
        rows.append([f"`{path.removesuffix('[]')}`", link, shown_default, about])
    top = table(["key", "type", "default", "what it does"], rows)
    return "\n\n".join([one_line(schema.__doc__), top, *sections])


def nested_settings(annotation: Any) -> Any:
    """The settings class inside an annotation, such as Corpus in tuple[Corpus, ...], or None."""
    from neutral_residues.config.base import Settings

    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and get_origin(part) is None and issubclass(part, Settings):
            return part
    return None


def anchor(path: str) -> str:
    return re.sub(r"\W+", "-", path).strip("-").lower()


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def shown(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(shown(part) for part in value)}]"
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    return str(value) if value != {} else "{}"


def type_name(annotation: Any, bounds: Any = ()) -> str:
    """A type in the words of YAML, with the limits that are checked."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part, bounds) for part in parts)
    if origin is tuple:
        return f"list of {type_name(parts[0], bounds)}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    names |= {type(None): "null", Any: "anything"}
    if origin is dict:
        return "mapping"
    name = names[annotation]
    return name + (limits(bounds) if annotation in (int, float) else "")


def limits(bounds: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(bound, name):g}"
        for bound in bounds
        for name, sign in signs.items()
        if hasattr(bound, name)
    ]
    return " " + ", ".join(found) if found else ""


def run_file() -> str:
    from neutral_residues.config.run import RunConfig

    return settings_reference(RunConfig)


def comparison_file() -> str:
    from neutral_residues.config.comparison import CompareConfig

    return settings_reference(CompareConfig)


# ---- tables of the package ----


def methods() -> str:
    from neutral_residues.methods.table import METHODS

    rows = [
        [
            f"`{method.name}`",
            f"**{method.title}**: {method.trains}. *{method.paper}*".replace(". *-*", ""),
            method.size_in_words.removeprefix("the budget becomes "),
            f"{method.learning_rate:g}" if method.learning_rate else "",
            ", ".join(method.afterwards),
        ]
        for method in METHODS
    ]
    return table(["`method:`", "what trains", "budget sets", "learning rate", "afterwards"], rows)


def formats() -> str:
    from neutral_residues.export.formats.table import FORMATS

    return table(["`--to`", "what it is"], [[f"`{row.name}`", row.title] for row in FORMATS])


def families() -> str:
    """The table of the contract test: every family that is built, extended, trained and undone."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    from families import FAMILIES, GROUPS, WITHOUT_FFN

    rows = [
        [f"{title} ({len(group)})", ", ".join(f"`{name}`" for name in group)]
        for title, group in GROUPS.items()
    ]
    refused = ", ".join(f"`{name}`" for name in WITHOUT_FFN)
    return "\n\n".join(
        [
            f"**{len(FAMILIES)} families**, by `model_type`:",
            table(["feed-forward block", "families"], rows),
            "Refused with a message that says what was found, because no module of theirs is the"
            f" feed-forward block: {refused}.",
        ]
    )


def public_names() -> str:
    import neutral_residues

    return "\n\n".join(f"::: neutral_residues.{name}" for name in neutral_residues.__all__)


def commands() -> str:
    """Every command with its arguments, from the command line's own declarations."""
    import typer.main

    from neutral_residues.cli.app import app

    group = typer.main.get_command(app)
    return "\n\n".join(command(name, found) for name, found in group.commands.items())


def command(name: str, found: Any) -> str:
    rows = []
    for param in found.params:
        is_option = param.opts[0].startswith("-")
        names = ", ".join(param.opts + param.secondary_opts) if is_option else param.name.upper()
        rows.append([f"`{names}`", one_line(param.help)])
    text = found.help.replace("\b\n", "```text\n")
    text += "\n```" if "```text" in text else ""
    return f"## neutral {name}\n\n{text}\n\n{table(['argument or option', 'what it is'], rows)}"


# ---- architecture ----


def folders() -> str:
    """The folders of the package with the first line of each."""
    rows = []
    for init in sorted(PACKAGE.rglob("__init__.py")):
        room = init.parent.relative_to(PACKAGE).as_posix()
        if room != ".":
            first = re.match(r'"""(.*?)(?:\n\n|""")', init.read_text("utf-8"), flags=re.DOTALL)
            rows.append([f"`{room}/`", one_line(first[1]) if first else ""])
    return table(["folder", "what is in it"], rows)


def layers() -> str:
    """The import contract of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    return "```text\n" + "\n".join(contracts[0]["layers"]) + "\n```"


TABLES: dict[str, Callable[[], str]] = {
    "run-file": run_file,
    "comparison-file": comparison_file,
    "methods": methods,
    "formats": formats,
    "families": families,
    "public-names": public_names,
    "commands": commands,
    "folders": folders,
    "layers": layers,
}
