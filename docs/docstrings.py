"""Markdown of docstrings: what they write as reStructuredText, for the API pages of the site."""

import re
from typing import Any

import griffe

MATH_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.M)
CODE_BLOCK = re.compile(r"^( *)(\S.*)::\n\n((?:\1 {4}.*\n|\n)+)", re.M)


def markdown(text: str) -> str:
    """The docstring with formulas, code blocks and references as the site writes them."""
    text = MATH_BLOCK.sub(_formula, text + "\n")
    text = CODE_BLOCK.sub(_code, text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text).rstrip()


def _formula(found: re.Match[str]) -> str:
    lines = [line.strip() for line in found[2].splitlines() if line.strip()]
    return "\n".join(["", *(found[1] + line for line in ("$$", *lines, "$$")), "", ""])


def _code(found: re.Match[str]) -> str:
    margin, title = found[1], found[2]
    lines = [line.removeprefix(margin + "    ") for line in found[3].rstrip().splitlines()]
    # "Example:" alone would begin a section of the docstring.
    heading = f"*{title}*" if title == "Example" else f"{title}:"
    body = ("```python", *lines, "```")
    return "\n".join([margin + heading, "", *((margin + line).rstrip() for line in body), "", ""])


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
