"""Work in several processes of one group, without importing torch again in each."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from lavis.common import dist


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def on_ranks(ranks: int, work: Callable[[int], Any], seconds: float = 120) -> list[Any]:
    """Run work(rank) in as many forked processes of one group; its return values, in the order of the ranks."""

    def start(rank: int, port: int, pipe: Any) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        torch.set_num_threads(1)
        dist.init_from_env("gloo", timeout_minutes=seconds / 60)
        pipe.send(work(rank))
        dist.barrier()
        dist.shutdown()

    context, port = multiprocessing.get_context("fork"), free_port()
    pipes, processes = [], []
    for rank in range(ranks):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=start, args=(rank, port, send))
        process.start()
        send.close()  # so that a process that dies is noticed at once
        pipes.append(receive)
        processes.append(process)
    try:
        return [pipe.recv() if pipe.poll(seconds) else None for pipe in pipes]
    except EOFError:
        raise AssertionError(f"a rank of {ranks} died; its error is above") from None
    finally:
        for process in processes:
            process.join(seconds)
            assert process.exitcode == 0
