"""Every block of the README runs, in order, as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


@pytest.mark.slow
def test_blocks_run_in_order(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "lavis").write_text(f'#!/bin/sh\nexec {sys.executable} -m lavis "$@"\n')
    (tools / "lavis").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LAVIS_OFFLINE": "1",
        "LAVIS_CACHE": str(tmp_path / "cache"),
    }
    ran = 0
    for language, code in BLOCKS:
        if language == "python":
            command = [sys.executable, "-c", code]
        elif language == "bash":
            command = ["bash", "-euc", code]
        else:
            continue
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 5


def test_plain_blocks_are_make_and_pip():
    for language, code in BLOCKS:
        if language == "":
            for line in code.strip().splitlines():
                assert line.startswith(("make ", "pip install ")), line
                if line.startswith("make "):
                    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_files_that_the_readme_names_exist():
    prose = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
        assert (ROOT / target).exists(), target
