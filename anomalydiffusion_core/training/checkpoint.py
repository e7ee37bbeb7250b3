"""Checkpoints: a training on disk, whole or not at all, from which it goes on bit for bit.

A folder beside the artifact holds one safetensors file per stage of the training, and a lock, so that two
trainings never write one artifact.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..method.artifact import write_atomically
from .config import CHECKPOINT_MINUTES, FitConfig
from .fitting import Fitting

FORMAT = "anomalydiffusion-checkpoint/3"  # raised when what a checkpoint holds changes
MAY_DIFFER = ("minutes", "patience")  # of a configuration; they only say when to stop


class Checkpoints:
    """Keeps the trainings of one artifact in `folder`, at most every `minutes`."""

    def __init__(self, folder: Path, minutes: float = CHECKPOINT_MINUTES) -> None:
        self.folder, self.minutes = folder, minutes

    def stage(self, name: str, origin: dict[str, Any]) -> StageKeeper:
        """Where one training of several is kept. `origin` says what was trained on what: a checkpoint of
        another, or of another configuration, is refused.
        """
        return StageKeeper(self._file(name), origin, self.minutes)

    def has(self, stage: str) -> bool:
        """Whether something of that stage is kept."""
        return self._file(stage).exists()

    def _file(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"

    def check(self, resume: bool) -> None:
        """Raises ValueError where there is nothing to resume, or something is and nobody asked for it."""
        kept = self._kept()
        if kept and not resume:
            raise ValueError(
                f"{self.folder} holds a training that was cut off: add --resume to go on with it, or delete "
                "that folder."
            )
        if resume and not kept:
            raise ValueError(f"There is no training to resume in {self.folder}: leave --resume out.")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock; raises ValueError where another training has it."""
        new_folders = [folder for folder in self.folder.parents if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"Another training is writing to {self.folder}: wait for it, or choose another name."
            ) from None
        try:
            yield
        finally:
            lock.release()
            if not self._kept():
                self.remove()
                for folder in new_folders:
                    if not any(folder.iterdir()):  # nothing was written to it
                        folder.rmdir()

    def _kept(self) -> bool:
        return any(self.folder.glob("*.safetensors"))

    def remove(self) -> None:
        """Deletes the folder; for when the artifact is written."""
        shutil.rmtree(self.folder)


class StageKeeper:
    """`fitting.Keeper` on a file."""

    def __init__(self, path: Path, origin: dict[str, Any], minutes: float) -> None:
        self.path, self.origin, self.minutes = path, origin, minutes
        self.kept = time.monotonic()

    def after_step(self, fitting: Fitting) -> None:
        if time.monotonic() - self.kept >= 60 * self.minutes:
            self.keep(fitting)

    def keep(self, fitting: Fitting) -> None:
        """Writes everything that the next step depends on; raises OSError where that is impossible."""
        tensors, record = fitting.state()
        record |= {"format": FORMAT, "origin": self.origin, "config": asdict(fitting.config)}
        write_atomically(self.path, tensors, {name: json.dumps(value) for name, value in record.items()})
        self.kept = time.monotonic()

    def restore(self, fitting: Fitting) -> None:
        """Brings a fresh training to where the file has it; nothing where there is no file.

        Raises ValueError when the file is damaged or of another training.
        """
        if not self.path.exists():
            return
        tensors, record = self.read()
        self._check(record, fitting.config)
        fitting.restore(tensors, record)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                record = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(
                f"Checkpoint {self.path} is damaged ({error}): delete it and train again."
            ) from error
        if record.get("format") != FORMAT:
            raise ValueError(f"{self.path} is no checkpoint of this version: delete it and train again.")
        return tensors, record

    def _check(self, record: dict[str, Any], config: FitConfig) -> None:
        then = {**record["origin"], **record["config"]}
        now = json.loads(json.dumps({**self.origin, **asdict(config)}))
        changed = [key for key in now if key not in MAY_DIFFER and then.get(key) != now[key]]
        if changed:
            key = changed[0]
            raise ValueError(
                f"The training in {self.path} was begun with {key} {then.get(key)!r}, not {now[key]!r}: give "
                "the same again, or train to another name."
            )
