"""What a search means: which words a text has, and which records a query fits.

Words are runs of letters and digits, without accents and capitals; each Chinese or Japanese character is a word.
A query's words must all occur, anywhere in a record; `"a phrase"` in this order within one text; `word*` is the
beginning of a word; `-word` must not occur.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from lavis.common.markup import Markup, escape, tag

# Between the texts of a record, so that no phrase reaches over their border: a code point that is no character and
# never part of a word.
BORDER = "\ufdd0"

_ASCII = re.compile(r"[a-z0-9]+")
_SINGLE = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # written without spaces
_PART = re.compile(r'(-?)"([^"]*)"(\*?)|(-?)([^\s"]+)')
_RUN = re.compile(r"[^\W_]+(?:[^\W_]|[\u0300-\u036f])*")


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    out: list[str] = []
    run: list[str] = []
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    for c in folded:
        if c.isalnum():
            if any(low <= ord(c) <= high for low, high in _SINGLE):
                out += ["".join(run), c] if run else [c]
                run = []
            else:
                run.append(c)
        elif run and not unicodedata.category(c).startswith("M"):  # a mark belongs to its letter
            out.append("".join(run))
            run = []
    return [*out, "".join(run)] if run else out


@dataclass(frozen=True)
class Term:
    """Words that follow one another; with `prefix` the last one may go on."""

    words: tuple[str, ...]
    prefix: bool = False

    def expression(self) -> str:
        """In the language of SQLite's full-text search."""
        return '"' + " ".join(self.words) + '"' + ("*" if self.prefix else "")


@dataclass(frozen=True)
class Query:
    """A parsed search; an empty one fits everything."""

    wanted: tuple[Term, ...] = ()
    unwanted: tuple[Term, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Query:
        """Read a query; what has no letter or digit in it is ignored."""
        wanted: list[Term] = []
        unwanted: list[Term] = []
        for match in _PART.finditer(text):
            minus, phrase, star, bare_minus, bare = match.groups()
            content = phrase if phrase is not None else bare
            prefix = bool(star) if phrase is not None else bare.endswith("*")
            found = tuple(words(content))
            if found:
                (unwanted if minus or bare_minus else wanted).append(Term(found, prefix))
        return cls(tuple(wanted), tuple(unwanted))

    def __bool__(self) -> bool:
        return bool(self.wanted or self.unwanted)


def searchable(texts: Sequence[str]) -> str:
    """Texts as the index takes them."""
    return f" {BORDER} ".join(" ".join(words(text)) for text in texts)


def highlighted(text: str, query: Query) -> Markup:
    """A text as HTML with the words of a query marked."""
    if not query.wanted:
        return escape(text)
    whole = {w for term in query.wanted for w in (term.words[:-1] if term.prefix else term.words)}
    starts = tuple(term.words[-1] for term in query.wanted if term.prefix)
    out: list[object] = []
    end = 0
    for match in _RUN.finditer(text):
        if any(w in whole or (starts and w.startswith(starts)) for w in words(match[0])):
            out += [text[end : match.start()], tag("mark", match[0])]
            end = match.end()
    return escape([*out, text[end:]])
