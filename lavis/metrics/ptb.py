"""The tokenizer of the published caption scores, in Python.

COCO's caption evaluation tokenizes with Stanford's PTBTokenizer 3.4.1 (`-preserveLines -lowerCase`,
a Java program) and drops a list of punctuation tokens. Here its behaviour is written as regular
expressions, which the tests hold against the Java program on generated text. It is a longest-match
scanner: each rule proposes a token at the current place, the longest proposal wins (what a rule looks
ahead at counts as length), the earlier rule wins a tie.

Differences that are meant:
- A caption's tokens depend on that caption alone. The Java program reads all captions as one text, so
  one that ends in "a." or "no." is read together with the next one.
- Line separators inside a caption count as spaces; the official wrapper then gives every later caption
  to the wrong picture.
- The direction of a straight quotation mark is not told apart; it is dropped anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache

from lavis.metrics import ptb_tables

# Dropped after tokenizing, case-sensitive as in the official list. So brackets stay: after
# lower-casing they read -lrb- and -rrb-. The list is the one of pycocoevalcap.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."])

# ---------------------------------------------------------------- characters beyond ASCII
# Rules are written over ASCII: a non-ASCII character is first replaced by the sign of its class.
_LETTER, _MARK, _DIGIT, _SYMBOL, _DROP, _HYPHEN = "\x01", "\x02", "\x03", "\x04", "\x05", "\x07"
_SOFT, _POINT, _SLASH, _APOSTROPHE, _NBSP = "\x08", "\x0e", "\x0f", "\x10", "\x11"
# opening single quotes; other curved quotes; superscripts and subscripts
_OPEN, _QUOTE, _SMALL = "\x12", "\x13", "\x14"
_SPECIAL = {
    0xAD: _SOFT, 0xA0: _NBSP, 0x2044: _SLASH, 0x66B: _POINT, 0x66C: _POINT, 0x92: _APOSTROPHE,
    0x2019: _APOSTROPHE, 0x58A: _HYPHEN, 0x2010: _HYPHEN, 0x2011: _HYPHEN,
    **dict.fromkeys(map(ord, "\x91‘‛"), _OPEN), **dict.fromkeys(map(ord, "\x93\x94‹›“”«»"), _QUOTE),
    **dict.fromkeys(map(ord, "²³¹⁰⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉₊₋"), _SMALL),
}  # fmt: skip
_SPACES = (0x85, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, *range(0x2000, 0x200B))

# How a token of one character is written (the Windows-1252 places 80 to 9f are read as such).
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''",
    **dict.fromkeys("\x91‘‛‹", "`"), **dict.fromkeys("\x92’›", "'"),
    **dict.fromkeys("\x93«“", "``"), **dict.fromkeys("\x94»”", "''"),
    **dict.fromkeys("\x96\x97–—―", "--"), **dict.fromkeys("\x80¤₠€", "$"), "¢": "cents", "£": "#",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "…": "...", "\xad": "-",
}  # fmt: skip


@cache
def _classes() -> dict[int, str]:
    table = dict.fromkeys(range(0x10000), _DROP)
    for sign, ranges in (
        (_LETTER, ptb_tables.LETTERS),
        (_MARK, ptb_tables.MARKS),
        (_DIGIT, ptb_tables.DIGITS),
        (_SYMBOL, ptb_tables.SYMBOLS),
    ):
        table.update(dict.fromkeys(ptb_tables.expand(ranges), sign))
    table.update(_SPECIAL)
    table.update(dict.fromkeys(_SPACES, " "))
    for code in range(0x20, 0x7F):
        del table[code]
    table.update(dict.fromkeys(b"\t\n\v\f\r", " "))
    return table


def _classify(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    table = _classes()
    return "".join([table.get(ord(c), c if c < "\x7f" else _DROP) for c in text])


# ---------------------------------------------------------------- abbreviations that keep their period
def _words(text: str) -> list[str]:
    return text.split()


_TITLES = _words(
    """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec
    ens ft gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph
    pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"""
)
# These may end a sentence: they win over a word that is one letter longer ("co.a" is "co. a").
_FINALS = _words(
    """al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext
    feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov
    oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc
    wyo"""
)
_CAPITALIZED = ["ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex"]  # "wash" is a title
_FIRST_LETTER = ["ppte", "pptes", "ppty", "pptys", "pte", "ptes", "pty", "ptys"]  # never in capitals
# After a single letter these begin a new sentence: "b. The" against "J. Morgan".
_STARTERS = _words(
    """A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Now Once One Other Our She Since So Some Such That The Their Then There These They This We What
    When While Yet You"""
)
_FILES = _words(
    """bat bmp c cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov pdf php pl png ppt ps py
    sql tar txt wav x xml zip"""
)


def _one_of(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


def _capital(word: str) -> str:
    return f"{word[0].upper()}(?i:{word[1:]})"


def _either(word: str) -> str:
    return f"[{word[0]}{word[0].upper()}]{word[1:]}"


# ---------------------------------------------------------------- rules
_A = rf"A-Za-z{_LETTER}"
_D = rf"0-9{_DIGIT}"
_W = _A + _MARK + _SOFT
_S = f"[ {_NBSP}]"
_Q = f"(?:['{_APOSTROPHE}]|&apos;)"
_WORD = rf"[{_W}][{_W}{_D}]*(?:[.!?][{_W}][{_W}{_D}]*)*"
_NUMBER = rf"(?:[{_D}]*(?:[.,:{_SOFT}{_POINT}][{_D}]+)+|[{_D}]+)"
_SUFFIX = rf"{_Q}(?:[msdMSD]|[Rr][Ee]|[Vv][Ee]|[Ll][Ll])"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_SPACE = f" \t{_NBSP}"
_NAME = r"[A-Za-z][A-Za-z0-9:._\-]*"
_ATTRIBUTE = rf"{_NAME}(?:[ ]*=[ ]*(?:'[^']*'|\"[^\"]*\"))?"
_HOST = rf"[^{_SPACE}\"<>|.!?(){{}},]+\."
_DOMAIN = rf"[^{_SPACE}\"`'|$(){{}}!,-_]+"  # neither digits nor capitals, as observed
_THING = rf"(?:[dDoOlL](?:{_Q}|[`{_OPEN}])[{_A}{_D}])?[{_A}{_D}]+"
_THINGS = rf"{_THING}(?:[_\-{_HYPHEN}]{_THING})*"
_COMPOUND = rf"[A-Za-z0-9][A-Za-z0-9.,{_SOFT}]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9{_SOFT}]+))+"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_PATH = rf"(?:/[^{_SPACE}\"<>|()]+[^{_SPACE}\"<>|.!?(){{}},\-])?"

# (first characters, pattern, kind). A group in the pattern is the token, the rest is looked ahead at; the
# kind says how the token is written (`_written`) or, for "final" and "before mark", what length is added.
_RULES: list[tuple[str, str, str]] = [
    # mark-up, entities, addresses
    ("<", rf"<(?:[!?][A-Za-z\-][^>]*|/{_NAME}[ ]*|{_NAME}(?:[ ]+{_ATTRIBUTE})*[ ]*/?)>", "spaced"),
    ("&", r"&(?:amp|AMP|lt|LT|gt|GT|quot|QUOT|apos|APOS|nbsp|NBSP|[nm]dash|MD);", "entity"),
    ("&", r"&#[0-9]+;|&(?:HT|TL|UR|LR|QC|QL|QR|ODQ|CDQ);", ""),
    ("letter", rf"(?i:https?)://[^{_SPACE}\"<>|()]+[^{_SPACE}\"<>|.!?(){{}},\-]", ""),
    ("letter", rf"(?i:www)\.(?:{_HOST})+[a-zA-Z]{{2,4}}{_PATH}", ""),
    (
        f"letter # % & * + ~ {_DROP} {_SYMBOL} {_HYPHEN} {_APOSTROPHE} {_OPEN} {_QUOTE} {_SMALL}",
        rf"(?:{_DOMAIN}\.)+(?i:com|net|org|edu){_PATH}",
        "",
    ),
    (
        "letter digit < &",
        rf"(?:&lt;|<)?[a-zA-Z0-9][^{_SPACE}\"<>|(){{}}]*@"
        rf"(?:[^{_SPACE}\"<>|(){{}}.]+\.)*[^{_SPACE}\"<>|(){{}}.]+(?:&gt;|>)?",
        "",
    ),
    ("@", r"@[A-Za-z_][A-Za-z_0-9]*", ""),
    ("#", rf"#[{_W}]+", ""),
    # words that are cut in two, and their suffixes
    *(
        ("letter", rf"((?i:{a}))(?i:{b})(?![A-Za-z0-9])", "")
        for a, b in (pair.split() for pair in ("can not", "gon na", "got ta", "lem me", "gim me", "wan na"))
    ),
    ("'", r"('[tT])(?:[iI][sS]|[wW][aA][sS])", ""),
    ("letter", rf"({_WORD}){_SUFFIX}", ""),
    ("' &", rf"({_SUFFIX})(?:[^A-Za-z]|$)", "suffix"),
    ("letter", rf"([{_W}]*[A-MO-Za-mo-z{_LETTER}{_MARK}])[nN](?:{_Q}|`)[tT]", ""),
    ("letter", rf"[nN](?:{_Q}|`)[tT]", "suffix"),
    # words, and abbreviations with their period
    ("letter", _WORD, ""),
    ("letter", rf"(?:{_WORD}|{_THINGS}|{_COMPOUND})\.(?=[,;:])", "before mark"),
    ("digit", rf"(?:{_THINGS}|{_COMPOUND})\.(?=[,;:])", "before mark"),
    ("letter", rf"(?i:{_one_of(_FINALS)})\.", "final"),
    ("letter", rf"(?:{'|'.join([*map(_capital, _CAPITALIZED), *map(_either, _FIRST_LETTER)])})\.", "final"),
    ("letter", rf"(?i:{_one_of(_TITLES)})\.|{_capital('wash')}\.|(?:[Mm]fg|[Mm]tg)\.", ""),
    ("letter", rf"((?i:nos?|art|ca|figs?|pp?)\.){_S}*[0-9]", ""),
    ("letter", r"(?:[A-Za-z]\.)+", ""),
    ("letter", rf"([{_A}])\.[ {_NBSP}]+(?:(?:{_one_of(_STARTERS)})(?=[ {_NBSP}]|$)|M[rs]\.)", ""),
    ("letter", r"[Pp][Hh]\.[Dd]\.", ""),
    # words with an apostrophe
    ("'", rf"{_Q}[nN]{_Q}?", ""),
    ("letter", rf"[lLdDjJ]{_Q}", ""),
    ("letter", rf"[Dd]unkin{_Q}|[Ss]omethin{_Q}|[Oo]l{_Q}|(?i:cont{_Q}d\.?|nor{_Q}easter|c{_Q}mon)", ""),
    ("letter", rf"(?i:e{_Q}er|s{_Q}mores|ev{_Q}ry|li{_Q}l|nat{_Q}l|o{_Q}o|cap{_Q}n)", ""),
    ("'", rf"{_Q}(?i:em|till?|cause)|{_Q}[2-9]0[sS]", ""),
    ("letter", rf"[A-HJ-XZn](?:{_Q}|[`{_OPEN}])[{_W}][{_W}]+", ""),
    ("letter", rf"[{_W}]+[aeiouyAEIOUY](?:{_Q}|[`{_OPEN}])[aeiouA-Z][{_W}]*", ""),
    ("letter", rf"([yY]{_Q})[A-Za-z]", ""),
    ("'", rf"{_Q}[0-9][0-9](?=[ {_NBSP}]|$)", ""),
    # an opening quote; it only matters by being longer than 's and 'n in front of a letter
    ("'", r"(')[A-Za-z][^ \x11]", ""),
    ("' &", _SUFFIX, "suffix"),
    # numbers, dates, fractions, telephone numbers
    (f"digit + - . , : {_POINT}", rf"[+\-]?{_NUMBER}", ""),
    ("digit", rf"[{_D}]{{1,2}}[\-/][{_D}]{{1,2}}[\-/][{_D}]{{2,4}}", ""),
    ("digit", rf"(?:[{_D}]{{1,4}}[\- {_NBSP}])?[{_D}]{{1,4}}(?:\\?/|{_SLASH})[{_D}]{{1,4}}", "spaced"),
    (
        "digit ( +",
        rf"(?:\([0-9]{{2,3}}\){_S}?|(?:\+\+?)?(?:[0-9]{{2,4}}[\- {_NBSP}])?[0-9]{{2,4}}[\- {_NBSP}])"
        rf"[0-9]{{3,4}}[\- {_NBSP}]?[0-9]{{3,5}}",
        "spaced",
    ),
    ("digit +", r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}", ""),
    # words joined by hyphens, underscores, slashes, and what programmers write
    ("letter digit", _COMPOUND, ""),
    ("letter digit", _THINGS, ""),
    ("letter digit", rf"{_PART}(?:\\?/{_PART}){{1,2}}", ""),
    ("letter digit", rf"[{_A}{_D}]+(?:\.[{_A}{_D}]+)*\.(?i:{_one_of(_FILES)})(?=[ {_NBSP}.,!?]|$)", ""),
    ("letter", r"[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+", "entity"),
    ("letter", r"[cC]\+\+|[cCfF]#", ""),
    # runs of marks
    (".", rf"(?:\.{_S}){{2,4}}\.|\.{{3,5}}", "dots"),
    ("! ?", r"[!?]+", ""),
    ("-", r"--+", "dash"),
    ("* \\", r"\*+|\\\*", ""),
    ("# _ @", r"#+|_+|@+", ""),
    ("< >", r"<<|>>", ""),
    ("' `", r"''|``", "quote"),
    (f"{_QUOTE} {_OPEN} {_APOSTROPHE} `", rf"[{_QUOTE}{_OPEN}{_APOSTROPHE}`]{{1,2}}", "quotes"),
    (_SMALL, rf"{_SMALL}+", ""),
    ("< > : ; =", r"([<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])", "smiley"),
    (
        "( ^ x = ~ < > - '",
        r"[\^x=~<>]\.\[\^x=~<>]|[\-^x=~<>']_[\-^x=~<>']|\([\-^x=~<>'][_.]?[\-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",
        "smiley",
    ),
    ("letter", r"[A-Z]+\$", ""),
]
_ENTITIES = {
    "amp": "&", "lt": "<", "gt": ">", "quot": "''", "apos": "'", "nbsp": "",
    "ndash": "--", "mdash": "--", "md": "--",
}  # fmt: skip


@cache
def _rules_by_first() -> dict[str, list[tuple[re.Pattern[str], str]]]:
    table: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for starts, pattern, kind in _RULES:
        entry = (re.compile(pattern), kind)
        for start in starts.split(" "):
            table.setdefault(start, []).append(entry)
    letters, digits = table.pop("letter"), table.pop("digit")
    # a letter may also begin an emoticon ("x_x")
    for c in [chr(c) for c in range(128) if chr(c).isalpha()] + [_LETTER, _MARK, _SOFT]:
        table[c] = letters + table.get(c, [])
    for c in [*"0123456789", _DIGIT]:
        table[c] = digits
    table[_APOSTROPHE] = table["'"] + table[_APOSTROPHE]
    return table


def _written(token: str, kind: str) -> str:
    """A matched token as it is printed; "" if nothing is."""
    if kind == "entity":
        if token.startswith("&"):
            return _ENTITIES[token[1:-1].lower()]
        return token.lower().replace("&amp;", "&")
    if kind == "dots":
        return "..."
    if kind == "dash":
        return "--"
    if kind == "quote":
        return "''"
    if kind == "quotes":
        return "".join([_WRITTEN.get(c, c) for c in token])
    if kind == "smiley":
        return token.lower().replace("(", "-lrb-").replace(")", "-rrb-")
    token = token.lower().replace("\xad", "")
    if kind == "spaced":
        return token.replace(" ", "\xa0").replace("(", "-lrb-").replace(")", "-rrb-")
    if kind == "suffix":
        return token.replace("’", "'").replace("\x92", "'").replace("&apos;", "'")
    return token


def raw_tokens(text: str) -> list[str]:
    """Tokens of one caption, lower case, before punctuation is dropped.

    Args:
        text: one caption; line separators count as spaces.
    Returns:
        The tokens. Brackets are written -lrb-, -rrb- and so on; a token that spans a space (a
        telephone number, "1 1/2") holds a no-break space in its place.
    """
    signs = _classify(text)
    rules = _rules_by_first()
    tokens: list[str] = []
    place = 0
    while place < len(signs):
        first = signs[place]
        if first in (" ", _NBSP):
            place += 1
            continue
        reach = 0
        end, kind = place + 1, "one"
        for pattern, its_kind in rules.get(first, ()):
            match = pattern.match(signs, place)
            if match is None:
                continue
            length = match.end() + (2 if its_kind == "final" else 1 if its_kind == "before mark" else 0)
            if length > reach:
                reach = length
                end, kind = match.end(match.lastindex or 0), its_kind
        token = text[place:end]
        if end == place + 1 and kind in ("one", ""):
            if first > "\x1f" or first in (_SYMBOL, _SOFT, _APOSTROPHE, _OPEN, _QUOTE, _SMALL):
                tokens.append(_WRITTEN.get(token, token.lower()))
            elif first in (_LETTER, _MARK, _DIGIT):
                tokens.append(token.lower())
        else:
            written = _written(token, kind)
            if written:
                tokens.append(written)
        place = end
    return tokens


# A token may span, or look across, a space only here; everywhere else space-separated chunks are
# independent, and captions share most of their chunks.
_ACROSS_SPACE = re.compile(r"[\d)]\s+\d|<.*\s|\.\s+[.\d]|\b\w\.\s+[A-Z]")
# Not str.split: Python takes the separators 1c to 1f and no-break spaces for spaces, which may be within a token here.
_BETWEEN_SPACES = re.compile(rf"[^ \t\n\v\f\r{''.join(map(chr, _SPACES))}]+")
_SEPARATORS = ("\x1c", "\x1d", "\x1e", "\x1f")


@lru_cache(maxsize=1 << 16)
def _chunk(chunk: str) -> str:
    return " ".join([t for t in raw_tokens(chunk) if t not in PUNCTUATION])


def tokenize(text: str) -> str:
    """One caption as the official evaluation sees it: tokens in lower case, single spaces, no punctuation.

    Args:
        text: the caption as a person or model wrote it.
    Returns:
        The tokens joined by spaces, "" if nothing is left.
    """
    if _ACROSS_SPACE.search(text) is not None:
        tokenized = " ".join([t for t in raw_tokens(text) if t not in PUNCTUATION])
    else:
        tokenized = " ".join(filter(None, map(_chunk, _BETWEEN_SPACES.findall(text))))
    # pycocoevalcap strips each line that it reads
    return tokenized.rstrip() if text.endswith(_SEPARATORS) else tokenized
