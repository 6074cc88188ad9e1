"""A gallery of images or videos, read batch by batch and shared out among ranks. For `compute_sim_matrix`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lavis.common import dist
from lavis.nn.finite import check_finite
from lavis.nn.losses import similarities

TEXTS_AT_ONCE = 256
PRODUCTS_AT_ONCE = 2**25  # of images that have several vectors, before the largest is taken


def share_of(data_loader: Any, key: str) -> Iterator[tuple[list[int], torch.Tensor]]:
    """This rank's part of a gallery: places, and the media (b, …) under `key`.

    Args:
        data_loader: batches in order, the same on every rank, of which every rank takes some; or pairs of
            (indices, batch), which have been shared out already.
    """
    done = 0
    for number, loaded in enumerate(data_loader):
        if isinstance(loaded, tuple):
            indices, samples = loaded
            yield list(indices), samples[key]
            continue
        media = loaded[key]
        if number % dist.world_size() == dist.rank():
            yield list(range(done, done + len(media))), media
        done += len(media)


def sum_over_ranks(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of every rank's tensor, on the CPU; `device` is where the ranks can talk."""
    if not dist.is_on():
        return value.cpu()
    total = value.to(device)
    torch.distributed.all_reduce(total)
    return total.cpu()


def products(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Products (images, texts) of features (…, E), on the CPU and in float32, in whatever precision the towers
    computed; of images with several vectors (images, Q, E) the largest.

    Raises:
        NonFiniteError: an image's or a text's features are not finite.
    """
    found = [features.float().cpu() for features in (images, texts)]
    check_finite(found[0])
    check_finite(found[1], kind="text")
    if images.ndim == 2:
        return similarities(*found)
    each = max(1, PRODUCTS_AT_ONCE // max(1, images.shape[1] * len(texts)))  # images
    return torch.cat([similarities(some, found[1]) for some in found[0].split(each)])


@torch.no_grad()
def cosine_matrix(model: Any, data_loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all images (or videos) with all texts. Ranks share the work, and all of them get the whole.

    Args:
        model: has `embed_dim`, `embed_images` and `embed_texts`, see `lavis.inference.protocols.EmbedsBoth`; where it
            also has `embed_queries`, an image's cosine is the largest of its vectors'.
        data_loader: see `share_of`; `data_loader.dataset` has `text`, the texts, and as many items as there are images.

    Returns:
        (images, texts) and (texts, images), float32.
    """
    given = list(data_loader.dataset.text)
    texts = torch.zeros(len(given), model.embed_dim, device=model.device)
    order = sorted(range(len(given)), key=lambda i: len(given[i]))
    for number, start in enumerate(range(0, len(order), TEXTS_AT_ONCE)):
        if number % dist.world_size() == dist.rank():
            rows = order[start : start + TEXTS_AT_ONCE]
            texts[rows] = F.normalize(model.embed_texts([given[i] for i in rows]).float(), dim=-1)
    embed, shape = model.embed_images, [len(data_loader.dataset), model.embed_dim]
    if getattr(model, "embed_queries", None) is not None:
        embed = model.embed_queries
        shape.insert(1, model.num_queries)
    images = torch.zeros(shape, device=model.device)
    for indices, media in share_of(data_loader, getattr(model, "MEDIA", "image")):
        images[indices] = F.normalize(embed(media.to(model.device)).float(), dim=-1)
    sims = products(sum_over_ranks(images, model.device), sum_over_ranks(texts, model.device))
    return sims.numpy(), sims.t().contiguous().numpy()


@contextmanager
def side_by_side(device: torch.device) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` for independent pieces of inference; on a CPU each has one thread, and all threads have a piece.

    Products as small as those of an image with its texts leave most of a second thread idle when they share it.
    Autograd is off in the pieces, and autocast is as it is here.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def alone(work: Callable[..., Any], *inputs: Any) -> Any:
        with torch.no_grad(), torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            return work(*inputs)

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield lambda work, *inputs: pool.map(alone, repeat(work), *inputs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(
            threads
        )  # threads that begin later take the number that was set last, wherever that was
