"""The code blocks of a Markdown page, and running them in order as a reader would.

A comment before a block says what is special: `<!-- not run: why -->` (needs downloads or hardware: only its syntax is
checked) or `<!-- file: NAME -->` (the reader saves it under that name). Python blocks of a page share their variables.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[^\n`]*)\n(?P<code>.*?)^```", re.M | re.S
)

_DRIVER = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for number, (language, code) in enumerate(json.load(open(sys.argv[1])), 1):
    print(f"\\n=== step {number} ({language}) ===\\n{code}", flush=True)
    if language == "python":
        exec(compile(code, f"step {number}", "exec"), names)
    else:
        subprocess.run(["bash", "-euc", code], check=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, code, and the comment before it ("" for none)."""

    language: str
    code: str
    mark: str

    @property
    def skipped(self) -> bool:
        return self.mark.startswith("not run")

    @property
    def file(self) -> str | None:
        """The name that the reader saves it under."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(b["language"], b["code"], b["mark"] or "") for b in found]


def run(page: Path, folder: Path) -> int:
    """Run the blocks of a page in a folder; how many were run.

    Raises:
        AssertionError: one of them failed; its output is in the message.
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
    }
    steps = []
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.code, encoding="utf-8")
        elif block.language in ("python", "bash") and not block.skipped:
            steps.append((block.language, block.code))
    if not steps:
        return 0
    script = tools / "steps.json"
    script.write_text(json.dumps(steps), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(script)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return len(steps)
