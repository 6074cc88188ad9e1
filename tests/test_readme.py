"""Every block of the README runs, in order, as a reader would run it."""

from __future__ import annotations

import re

import pytest

from tests.pages import ROOT, blocks, run

README = ROOT / "README.md"


@pytest.mark.slow
def test_blocks_run_in_order(tmp_path):
    assert run(README, tmp_path) >= 5


def test_plain_blocks_are_make_and_pip():
    for block in blocks(README):
        if block.language == "":
            for line in block.code.strip().splitlines():
                assert line.startswith(("make ", "pip install ")), line
                if line.startswith("make "):
                    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_files_that_the_readme_names_exist():
    prose = re.sub(r"^```.*?^```", "", README.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
        assert (ROOT / target).exists(), target
