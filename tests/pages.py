"""The code blocks of a Markdown page: running them in order as a reader would, and checking what they print.

A comment before a block says what is special:

- `<!-- not run: why -->`: it needs downloads or hardware; only its syntax is checked;
- `<!-- file: NAME -->`: the reader saves it under that name;
- `<!-- output -->`, before a block of `text`: what the last block of code above prints; `<!-- messages -->`: what it
  writes to standard error. `tests/outputs.py` says how they are compared;
- `<!-- not checked: why -->`, before a block of `text`: published figures, for example.

Python blocks of a page share their variables.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.outputs import difference

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[^\n`]*)\n(?P<code>.*?)^```", re.M | re.S
)
STREAMS = {"output": "out", "messages": "err"}
"""The marks of printed blocks, and the file in which the driver keeps what a step wrote there."""

# Both streams of each step go to files of their own, below Python, so that subprocesses and loggers are in them too.
_DRIVER = """
import json, os, subprocess, sys
names = {"__name__": "__main__"}
for number, (language, code) in enumerate(json.load(open(sys.argv[1]))):
    for stream, ending in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        with open(f"{sys.argv[2]}/{number}.{ending}", "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    if language == "python":
        exec(compile(code, f"step {number}", "exec"), names)
    else:
        subprocess.run(["bash", "-euc", code], check=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, code, the comment before it ("" for none), and the line of its fence."""

    language: str
    code: str
    mark: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("python", "bash") and self.file is None and not self.skipped

    @property
    def skipped(self) -> bool:
        return self.mark.startswith("not run")

    @property
    def file(self) -> str | None:
        """The name that the reader saves it under."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(b["language"], b["code"], b["mark"] or "", text.count("\n", 0, b.start("language")) + 1)
        for b in _BLOCK.finditer(text)
    ]


def printed(page: Path) -> list[tuple[Block, Block | None]]:
    """Each block of `text`, with the block of code above it (None where there is none)."""
    found: list[tuple[Block, Block | None]] = []
    code = None
    for block in blocks(page):
        if block.language in ("python", "bash") and block.file is None:
            code = block
        elif block.language == "text":
            found.append((block, code))
    return found


def run(page: Path, folder: Path) -> int:
    """Run the blocks of a page in a folder and compare what they print with what the page says; how many were run.

    Raises:
        AssertionError: one of them failed (its output is in the message), or printed something else (page, block,
            expected and printed lines are in the message).
    """
    tools = folder / ".bin"
    tools.mkdir()
    (tools / "lavis").write_text(f'#!/bin/sh\nexec {sys.executable} -m lavis "$@"\n')
    (tools / "lavis").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LAVIS_OFFLINE": "1",
        "LAVIS_CACHE": str(folder / ".cache"),
        "COLUMNS": "80",
        "CUDA_VISIBLE_DEVICES": "",  # what the pages print is a CPU's: precision and draws differ on a GPU
    }
    steps = [block for block in blocks(page) if block.runs]
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.code, encoding="utf-8")
    if not steps:
        return 0
    script = tools / "steps.json"
    script.write_text(json.dumps([(step.language, step.code) for step in steps]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(script), str(tools)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        number = max((int(p.stem) for p in tools.glob("*.err")), default=0)
        said = [(tools / f"{number}.{e}").read_text(encoding="utf-8")[-4000:] for e in ("out", "err")]
        raise AssertionError(
            f"{page}:{steps[number].line}: failed\n{steps[number].code}\n" + "\n".join([*said, done.stderr])
        )
    wrong = []
    for text, code in printed(page):
        if text.mark not in STREAMS:
            continue
        assert code in steps, f"{page}:{text.line}: the output of a block that is not run"
        got = (tools / f"{steps.index(code)}.{STREAMS[text.mark]}").read_text(encoding="utf-8")
        if told := difference(text.code, got):
            wrong.append(
                f"{page}:{text.line}: the {text.mark} of the block at line {code.line}\n{code.code}{told}"
            )
    assert not wrong, "\n\n".join(wrong)
    return len(steps)
