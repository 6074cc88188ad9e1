"""The real demo as a process of its own, for tests."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def running(tmp_path, *options, env=None, before=()):
    """`lavis demo` on a free port, with a home and a temporary folder of its own.

    Yields:
        url; home; tmp: the folder in which temporary files are made; process; said(): its error output so far.
    """
    home, tmp = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, tmp):
        folder.mkdir(exist_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("GRADIO_", "LAVIS_", "HF_"))},
        "HOME": str(home), "TMPDIR": str(tmp), "OMP_NUM_THREADS": "1", **(env or {}),
    }  # fmt: skip
    command = [sys.executable, "-m", "lavis", *before, "demo", "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        url = None
        for line in process.stdout:
            found = re.search(r"http://\S+", line)
            if found:
                url = found[0]
                break
        assert url, f"the demo did not start: {''.join(lines)}"
        yield SimpleNamespace(url=url, home=home, tmp=tmp, process=process, said=lambda: "".join(lines))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        reader.join(5)
