"""Formulas of the documents as MathML, which browsers draw by themselves: no script, no network.

A Python-Markdown extension for the site. It knows the three forms that GitHub knows: ``$…$`` in a
line, ``$$…$$`` over one or several lines, and blocks fenced by ```` ```math ````.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element, fromstring

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

BLOCK = re.compile(
    r"^(?P<indent> *)(?:"
    r"```math\n(?P<fenced>.*?)^ *```|\$\$(?P<dollars>.*?)\$\$|(?P<code>```.*?^ *```))[^\S\n]*$",
    re.MULTILINE | re.DOTALL,
)
"""A displayed formula, or a block of code, whose dollars are none."""
NAMESPACE = ' xmlns="http://www.w3.org/1998/Math/MathML"'


class _Displayed(Preprocessor):
    """Replaces displayed formulas before Markdown sees their underscores."""

    def run(self, lines: list[str]) -> list[str]:
        return BLOCK.sub(self._formula, "\n".join(lines)).split("\n")

    def _formula(self, match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        html = convert((match["fenced"] or match["dollars"]).strip(), display="block")
        return f"{match['indent']}{self.md.htmlStash.store(html)}\n"


class _Inline(InlineProcessor):
    """A formula in a line."""

    def handleMatch(  # noqa: N802  the name is Markdown's
        self, match: re.Match[str], data: str
    ) -> tuple[Element, int, int]:
        formula = convert(match[1]).replace(NAMESPACE, "")  # else each tag has a prefix
        return fromstring(formula), match.start(0), match.end(0)


class MathExtension(Extension):
    """Markdown's side of this module."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  the name is Markdown's
        """Formulas come before emphasis and escapes, and after code spans."""
        md.preprocessors.register(_Displayed(md), "displayed_math", 26)
        pattern = r"(?<![\\$\w])\$([^\s$](?:[^$\n]|\n(?!\n))*?)(?<![\s\\])\$(?![\w$])"
        md.inlinePatterns.register(_Inline(pattern, md), "inline_math", 185)


def makeExtension(**settings: Any) -> MathExtension:  # noqa: N802  the name is Markdown's
    """What Markdown calls with the extension's settings."""
    return MathExtension(**settings)
