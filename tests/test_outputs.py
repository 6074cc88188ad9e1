"""What README and documentation print under their blocks is declared and checked; the comparison itself is right."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest

from tests.outputs import difference
from tests.pages import ROOT, STREAMS, blocks, printed, run

GENERATED = {"_build", "reference", "notebooks"}  # folders of docs/ that a build makes
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not GENERATED & set(p.relative_to(ROOT).parts)),
]


# ------------------------------------------------------------------------------------- the comparison
SAME = [
    ("a green square\n", "a green square\n"),
    ("a   green square", "\na green square\n\n"),
    ("0.9996", "0.99962"),
    ("0.9996", "1.0"),
    ("tensor([[0.64, -0.21]])", "tensor([[ 0.6423, -0.2099]])"),
    ("3.1e-05", "3.07e-05"),
    ("0.000031", "3.1e-05"),
    ("0.000", "3.1e-05"),
    ("1,602 tokens", "1602 tokens"),
    ("rate 0.0003", "rate 3e-4"),
    ("12:52:12 device cpu", "03:00:59 device cpu"),
    ("took 12.5 s on 2026-01-31", "took 3 s on 2027-12-01"),
    ("output/20260131125212", "output/20270131125212"),
    ("wrote …/three/words.png", "wrote /one/two/three/words.png"),
    ("first\n…\nlast", "first\nlast"),
    ("first\n…\nlast", "first\nsecond\nlast\nlast"),
    ("…\nb\n…", "a\nb\nb\nc"),
    ('{"text": "a", … "match": 0.99}', '{"text": "a", "image": "x y", "match": 0.992}'),
]
OTHER = [
    ("0.9996", "0.98"),
    ("0.64", "0.65"),
    ("0.64", "-0.64"),
    ("1.0", "0.94"),
    ("3.1e-05", "4.1e-05"),
    ("3.1e-05", "3.1e-04"),
    ("3.1e-05", "0"),
    ("0.000", "0.001"),
    ("0.00000", "3.1e-05"),
    ("0", "1"),
    ("12 of 24 images", "13 of 24 images"),
    ("1,602 tokens", "1,603 tokens"),
    ("(1, 3, 64, 64)", "(1, 3, 64, 65)"),
    ("drawings/0.png", "drawings/1.png"),
    ("wrote …/there/words.png", "wrote /one/there/word.png"),
    ("lavis 2.13.0", "lavis 2.14.0"),
    ("a green square", "a red square"),
    ("a green square", "a green square."),
    ("yes", "Yes"),
    ("a\nb", "a"),
    ("a", "a\nb"),
    ("", "a"),
    ("a", ""),
    ("a\nb", "b\na"),
    ("a\nb", "a b"),
    ("first\n…\nlast", "first\nsecond"),
    ("a\n…\na", "a"),
    ("…\nb\n…", "a\nc"),
    ('{"text": "a", … "match": 0.99}', '{"text": "a", "image": "x", "match": 0.97}'),
    ("took 12.5 s", "took 12.5 m"),
]


@pytest.mark.parametrize(("expected", "got"), SAME)
def test_outputs_that_agree(expected, got):
    assert difference(expected, got) == ""


@pytest.mark.parametrize(("expected", "got"), OTHER)
def test_outputs_that_differ(expected, got):
    told = difference(expected, got)
    for text in (expected, got):
        assert text.replace("\n", "\n    ") in told


PAGE = """
```python
print("first", 0.4321)
```

Prose in between, and another block, whose messages are checked:

<!-- output -->
```text
first 0.43
```

```bash
echo one
echo two >&2
```

<!-- output -->
```text
one
```

<!-- messages -->
```text
two
```

<!-- not checked: published figures -->
```text
0.1234
```
"""


def test_a_page_that_is_right_passes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (tmp_path / "run").mkdir()
    assert run(page, tmp_path / "run") == 2


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [("first 0.43\n", "first 0.44\n", 9), ("\none\n", "\none\nmore\n", 19), ("\ntwo\n", "\nten\n", 24)],
)
def test_a_page_that_is_wrong_fails_with_both(tmp_path, right, wrong, line):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace(right, wrong))
    (tmp_path / "run").mkdir()
    with pytest.raises(AssertionError) as error:
        run(page, tmp_path / "run")
    said = str(error.value)
    assert f"{page}:{line}: " in said
    assert f"expected:\n    {wrong.strip().splitlines()[0]}" in said
    assert f"got:\n    {right.strip()}".replace("0.43", "0.4321") in said


def test_a_block_that_fails_is_named_with_what_it_said(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\necho fine\n```\n\n```bash\necho before\nls missing\n```\n")
    (tmp_path / "run").mkdir()
    with pytest.raises(AssertionError, match=r"(?s)page.md:5: failed.*before.*missing"):
        run(page, tmp_path / "run")


# ------------------------------------------------------------------------------------------- the pages
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_printed_block_says_whether_it_is_checked(page):
    for text, code in printed(page):
        at = f"{page}:{text.line}"
        if text.mark in STREAMS:
            assert code is not None and code.runs, f"{at}: the output of a block that is not run"
        else:
            assert re.match(r"not checked: \S", text.mark), (
                f"{at}: say <!-- output --> or why it is not checked"
            )
        assert max(map(len, text.code.splitlines()), default=0) <= 80, f"{at}: wider than 80 columns"
    for block in blocks(page):
        at = f"{page}:{block.line}"
        assert block.language in ("", "python", "bash", "yaml", "toml", "text", "{toctree}"), (
            f"{at}: outputs are blocks of text"
        )
        if block.language != "text":
            assert block.mark not in STREAMS and not block.mark.startswith("not checked"), (
                f"{at}: {block.mark}"
            )
    fences = re.findall(r"^ *(?:```|~~~)", page.read_text(encoding="utf-8"), flags=re.M)
    assert fences == ["```"] * 2 * len(blocks(page)), f"{page}: a block that is indented or has another fence"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_value_is_printed_in_a_comment(page):
    """Such a value would not be checked: it belongs under the block."""
    for block in blocks(page):
        if block.language == "python":
            for token in tokenize.generate_tokens(io.StringIO(block.code).readline):
                if token.type == tokenize.COMMENT and token.line.lstrip().startswith("print("):
                    assert not _is_value(token.string.lstrip("# ")), f"{page}:{block.line}: {token.string}"
        elif block.language == "bash":
            for comment in re.findall(r"\s# *(.*)", block.code):
                assert not _is_value(comment), f"{page}:{block.line}: {comment}"


def _is_value(comment: str) -> bool:
    if re.match(r"(->|=>|→|tensor\(|prints\b)", comment):
        return True
    try:
        ast.literal_eval(comment)
    except (SyntaxError, ValueError):
        return False
    return True


@pytest.mark.parametrize("comment", ["0.99", "['a red star']", "(1, 3)", "tensor([1.])", "-> yes", "'yes'"])
def test_values_in_comments_are_found(comment):
    assert _is_value(comment)
    assert not _is_value(f"is about {comment}")
