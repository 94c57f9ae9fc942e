"""Write docs/reference.md: the commands, the fields of a recipe, and the docstrings of the public names.

    python scripts/reference.py           # writes it
    python scripts/reference.py --check   # ends with one line and status 1 where it is not current

Everything comes from the code: commands from their parser, fields from their descriptions in `gencond/config.py`,
functions and classes from their source, as it is written. So the page is the same on every machine.
"""

import argparse
import ast
import sys
from pathlib import Path

from gencond.cli import build_parser
from gencond.config import recipe_docs
from gencond.losses import __all__ as LOSSES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
START = """# Reference

Written by `python scripts/reference.py` from the code; edit the docstrings and descriptions there, not this page.

[Commands](#commands) - [Recipes](#recipes) - [Library](#library) - [Losses](#losses) - [Protocols](#protocols)
"""
# (file, names in it); a method stands after its class and a dot.
LIBRARY = (
    ("generator/dataset.py", ("load",)),
    ("api.py", ("condense", "append", "evaluate", "continual", "search")),
    ("publish.py", ("push",)),
    ("generator/pipeline.py", ("CondensedPipeline", "CondensedPipeline.__call__", "CondensedPipelineOutput")),
    ("generator/dataset.py", ("CondensedDataset",)),
    ("generator/pixels.py", ("CondensedPixels",)),
    ("generator/artefact.py", (
        "Condensed", "Condensed.sample", "Condensed.as_dataset", "Condensed.stream", "Condensed.export",
        "Condensed.stored_as", "Condensed.num_bytes", "Condensed.bytes_of", "Condensed.largest_ipc",
        "Condensed.fingerprint",
    )),
    ("common/errors.py", ("InputError",)),
)  # fmt: skip
PROTOCOLS = ["Protocol", "get_protocol", "check_protocol"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write docs/reference.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where the page is not current")
    text = page()
    if not parser.parse_args(arguments).check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/reference.md is not current: run `python scripts/reference.py`")


def page() -> str:
    sections = [START, "## Commands", *commands(), "## Recipes", *recipes(), "## Library", *library()]
    sections += ["## Losses", *losses(), "## Protocols", *protocols()]
    return "\n\n".join(section.strip() for section in sections) + "\n"


# --- commands ------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The arguments of each command, from the parser itself; argparse's own layout differs between Python versions."""
    parser = build_parser()
    (known,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {action.dest: action.help for action in known._choices_actions}
    sections = [f"{parser.description} Bad input ends in one line and status 2."]
    for name, sub in known.choices.items():
        rows = [row(action) for action in sub._actions if not isinstance(action, argparse._HelpAction)]
        about = sub.description or sentence(summaries[name])
        sections += [f"### gencond {name}", about, table(["argument", "what it is"], rows)]
    return sections


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def row(action: argparse.Action) -> list[str]:
    takes = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    takes = " ".join(takes) if isinstance(takes, tuple) else takes
    if action.choices:
        takes = "|".join(action.choices)
    if action.nargs in ("+", "*"):
        takes += " ..."
    name = action.option_strings[-1] if action.option_strings else ""
    words = f"{name} {takes}".strip() if action.nargs != 0 else name
    default = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
    about = (action.help or "").replace("%(default)s", default).replace("%(default)g", default)
    return [f"`{words}`", f"**required**; {about}" if action.required and name else about]


def table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# --- recipes -------------------------------------------------------------------------------------------------------


def recipes() -> list[str]:
    sections = [
        "A recipe is a YAML file: `part:`, and under it `field: value`. A field that is left out has its default. "
        "`gencond recipe NAME` prints a recipe with these words, and `part.field=value` changes a field on the command "
        "line."
    ]
    for part, (about, fields) in recipe_docs().items():
        rows = [[f"`{field.name}`", field.description, field.values, f"`{field.default}`"] for field in fields]
        sections += [f"### {part or 'the recipe itself'}", about]
        sections.append(table(["field", "what it is", "values", "default"], [[c or "" for c in r] for r in rows]))
    return [section.replace("``", "") for section in sections]


# --- docstrings ----------------------------------------------------------------------------------------------------


def library() -> list[str]:
    intro = (
        "These are names of `gencond`, such as `gencond.load`. An artefact is a `CondensedDataset` or a "
        "`CondensedPixels`, and both have the methods of `Condensed`."
    )
    return [intro, *(documented(file, name) for file, names in LIBRARY for name in names)]


def losses() -> list[str]:
    """Those that `gencond.losses` names, by their files."""
    files = {}
    for file in sorted((ROOT / "gencond" / "losses").glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in LOSSES:
                files[node.name] = f"losses/{file.name}"
    intro = 'All are imported from `gencond.losses`. `Float[Tensor, "n d"]` is a float tensor of n rows of length d.'
    return [intro, *(documented(files[name], name) for name in LOSSES)]


def protocols() -> list[str]:
    from gencond.eval.protocols import PROTOCOLS as known

    about = {name: protocol.describe() for name, protocol in known.items()}
    fields = [field for field in next(iter(about.values())) if field != "name"]
    rows = [[f"`{field}`", *(shown(values[field]) for values in about.values())] for field in fields]
    named = table(["", *(f"`{name}`" for name in about)], [row for row in rows if any(cell for cell in row[1:])])
    return [
        "`gencond.eval.protocols.PROTOCOLS` holds these by name; [protocols.md](protocols.md) holds them against the "
        "released code. An empty cell is null, or nothing.",
        named,
        *(documented("eval/protocols.py", name) for name in PROTOCOLS),
    ]


def shown(value: object) -> str:
    return "" if value in (None, (), "") else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def documented(file: str, name: str) -> str:
    """A heading, the signature as it stands in the source, and the docstring as it is."""
    source = (ROOT / "gencond" / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for step in name.split("."):
        node = next(one for one in node.body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == step)
    return f"### {name}\n\n```python\n{signature(node)}\n```\n\n```text\n{ast.get_docstring(node)}\n```"


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """From `def` to the return type; a class is called as its `__init__`, and a property is an attribute."""
    if isinstance(node, ast.ClassDef):
        init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
        return in_lines(f"class {node.name}", arguments(init), "") if init else f"class {node.name}"
    returned = f" -> {unparsed(node.returns)}"
    if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
        return f"{node.name}{returned}  # a property"
    return in_lines(f"def {node.name}", arguments(node), returned)


def arguments(function: ast.FunctionDef) -> list[str]:
    """Each argument but `self`, with its type and default; a star before those that go by name alone."""
    given = function.args
    defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
    words = [argument(*one) for one in zip(given.args, defaults, strict=True) if one[0].arg != "self"]
    by_name = [argument(*one) for one in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*words, "*", *by_name] if by_name else words


def argument(one: ast.arg, default: ast.expr | None) -> str:
    return f"{one.arg}: {unparsed(one.annotation)}" + ("" if default is None else f" = {unparsed(default)}")


def unparsed(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", '"')


def in_lines(start: str, arguments: list[str], end: str) -> str:
    line = f"{start}({', '.join(arguments)}){end}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{start}(", *(f"    {one}," for one in arguments), f"){end}"])


if __name__ == "__main__":
    main()
