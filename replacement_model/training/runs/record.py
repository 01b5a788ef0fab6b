"""`training.json`: settings, versions, corpora and curves of a run. It is a recipe too, so that the run can be repeated."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from crosstrace.replacement_model.training.runs.curves import Curves
from crosstrace.replacement_model.training.runs.files import write_whole
from crosstrace.replacement_model.training.settings import TrainingSettings, recorded

FILE = "training.json"
_FORMAT = "crosstrace-training/1"
_PACKAGES = ("crosstrace", "torch", "transformers", "tokenizers", "numpy", "numba")


@dataclass
class TrainingRecord:
    """What a run was asked for, and what became of it.

    Attributes:
        settings: What was trained, and how.
        model: The base model's name, fingerprint and dtype.
        corpus: The SHA-256 of each file.
        machine: Threads, device and the versions of what computed.
        run: Where the run is: stages done, tokens, seconds, the size of the buffer.
        curves: What steps saw.
        notices: What was said during the run.
        finished: Whether the weights are written.
    """

    settings: TrainingSettings
    model: dict[str, Any]
    corpus: dict[str, str]
    machine: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    notices: list[str] = field(default_factory=list)
    finished: bool = False

    def write(self, folder: Path) -> None:
        """Write `training.json` into a folder, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        content = {
            "format": _FORMAT,
            "settings": self.settings.as_dict(),
            "model": self.model,
            "corpus": self.corpus,
            "machine": self.machine,
            "run": self.run,
            "notices": self.notices,
            "finished": self.finished,
            "curves": self.curves.to_dict(),
        }
        data = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        write_whole(folder / FILE, lambda file: file.write(data))

    @staticmethod
    def read(folder: Path) -> TrainingRecord | None:
        """Return the record of a folder; None if it has none.

        Raises:
            ValueError: The file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text("utf-8"))
            return TrainingRecord(
                TrainingSettings(**recorded(content["settings"])),
                content["model"],
                content["corpus"],
                content["machine"],
                content["run"],
                Curves.of(content["curves"]),
                content["notices"],
                content["finished"],
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{path} is not the record of a training run ({problem})") from None

    def check_same(
        self, folder: Path, settings: TrainingSettings, model: dict[str, Any], corpus: dict[str, str]
    ) -> None:
        """Check that a run can be continued with what is asked for now.

        Raises:
            ValueError: A setting, the model or a corpus is another; it is named.
        """
        before, now = self.settings.as_dict(), settings.as_dict()
        for key, value in now.items():
            if before[key] != value:
                raise ValueError(
                    f"{folder} cannot be resumed with {key} = {_said(value)}: it was started with {_said(before[key])}; "
                    "run it as before, or name another folder"
                )
        for key in ("fingerprint", "dtype"):
            if self.model[key] != model[key]:
                raise ValueError(
                    f"{folder} cannot be resumed with another model: {key} is {model[key]} ({model['name']}), it was "
                    f"{self.model[key]} ({self.model['name']})"
                )
        if sorted(self.corpus.values()) != sorted(corpus.values()):
            changed = [name for name, digest in corpus.items() if digest not in self.corpus.values()]
            missing = [name for name, digest in self.corpus.items() if digest not in corpus.values()]
            raise ValueError(
                f"{folder} cannot be resumed with another corpus: {', '.join(changed or missing)} "
                f"{'was not read before, or has changed' if changed else 'is missing'}"
            )
        if list(self.corpus.values()) != list(corpus.values()):
            raise ValueError(
                f"{folder} cannot be resumed with its corpora in another order; it was {', '.join(self.corpus)}"
            )


def machine_now(threads: int, device: str) -> dict[str, Any]:
    """Return what computes: threads, device, and the versions that results depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"threads": threads, "device": device, "processor": platform.machine(), "versions": versions}


def _said(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
