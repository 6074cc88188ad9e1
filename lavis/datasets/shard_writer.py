"""The writer of WebDataset shards: numbered .tar files, each with pictures (.jpg) and their records (.json).

Shard i holds what could be got of places i·n … i·n + n - 1 of a list, in that order: which shard a picture is in
depends on the list alone. A shard is written when all its places are settled, and takes its name when it is
complete, so those that exist need not be made again, unless places that failed are to be tried anew: then what is got
is put between the shard's other pictures. `<shard>.jsonl` beside it lists its records. They are read by the data set
`shards` (shards.py).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lavis.common.files import write_json, write_text

SHARD_SIZE = 1000  # places of the list; about 40 MB at a shorter side of 384 pixels


class Shards:
    """Writes the shards of one list.

    Args:
        folder: where they go.
        identity: what the list is; another list is refused.
        size: places of the list per shard.
        again: places that failed before; where their shard is complete they are settled once more.

    Raises:
        ValueError: the folder holds shards of another list or size.
    """

    def __init__(
        self, folder: Path, identity: str, size: int = SHARD_SIZE, again: Iterable[int] = ()
    ) -> None:
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        note, mine = folder / "shards.json", {"list": identity, "places_per_shard": size}
        if note.is_file():
            found = json.loads(note.read_text(encoding="utf-8"))
            if found != mine:
                raise ValueError(
                    f"{folder} holds shards of {found}, not of {mine}; name another folder with --to"
                )
        else:
            write_json(note, mine)
        self._open: dict[int, dict[int, tuple[bytes, Mapping[str, Any]] | None]] = {}
        self._begun: dict[int, int] = {}
        self.finished = {int(p.stem) for p in folder.glob("*.tar") if p.stem.isdigit()}
        self._again: dict[int, set[int]] = {}  # of complete shards
        for place in again:
            if place // size in self.finished:
                self._again.setdefault(place // size, set()).add(place)

    def has(self, place: int) -> bool:
        """Whether this place is settled: its shard is complete, and it is not to be tried again."""
        shard = place // self.size
        return shard in self.finished and place not in self._again.get(shard, ())

    def expect(self, place: int) -> None:
        """A place of the list will be settled by `put`."""
        shard = place // self.size
        self._begun[shard] = self._begun.get(shard, 0) + 1

    def put(self, place: int, data: bytes | None, record: Mapping[str, Any]) -> None:
        """Settle a place: its picture (JPEG), or None where it could not be got."""
        self._open.setdefault(place // self.size, {})[place] = None if data is None else (data, record)

    def write_full(self, drawn_all: bool) -> int:
        """Write the shards all of whose places are settled.

        Args:
            drawn_all: the list is at its end, so the last shard may have fewer places.

        Returns:
            How many places were in them.
        """
        places = 0
        for shard in sorted(self._open):
            held = self._open[shard]
            expected = len(self._again[shard]) if shard in self._again else self.size
            if len(held) == expected or (drawn_all and len(held) == self._begun[shard]):
                got = {p: pair for p, pair in held.items() if pair is not None}
                if shard not in self._again:
                    self._write(shard, got)
                elif got:
                    self._write(shard, {**self._read(shard), **got})
                self._again.pop(shard, None)
                places += len(held)
                del self._open[shard], self._begun[shard]
        return places

    def _read(self, shard: int) -> dict[int, tuple[bytes, Mapping[str, Any]]]:
        parts: dict[int, dict[str, bytes]] = {}
        with tarfile.open(self.folder / f"{shard:05d}.tar") as tar:
            for member in tar:
                place, _, suffix = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None  # we wrote it, of plain files
                parts.setdefault(int(place), {})[suffix] = content.read()
        return {place: (pair["jpg"], json.loads(pair["json"])) for place, pair in parts.items()}

    def _write(self, shard: int, pairs: Mapping[int, tuple[bytes, Mapping[str, Any]]]) -> None:
        path = self.folder / f"{shard:05d}.tar"
        part = path.with_suffix(".tar.part")
        rows = []
        with tarfile.open(part, "w") as tar:
            for place, (data, record) in sorted(pairs.items()):
                key = f"{place:09d}"
                text = json.dumps({**record, "key": key}, ensure_ascii=False)
                rows.append(text)
                for suffix, content in (("jpg", data), ("json", text.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        write_text(path.with_suffix(".jsonl"), "".join(f"{row}\n" for row in rows))
        part.replace(path)
        self.finished.add(shard)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all complete shards, in the order of the list, with `shard` and `key`."""
        for shard in sorted(self.finished):
            path = self.folder / f"{shard:05d}.jsonl"
            for line in path.read_text(encoding="utf-8").split("\n"):
                if line:
                    yield {"shard": f"{shard:05d}.tar", **json.loads(line)}
