"""From nothing to circuits of the real Gemma 3 270M: fetch, train a cross-layer transcoder, make cards, trace, test.

    make gemma                 # planned for half an hour on two cores
    make gemma HOURS=2.5       # the same with a longer training
    python examples/gemma_270m/run.py WORK [--hours H] [--seed S]

No account and no GPU are needed: model and texts come out of packages. Every stage is one of crosstrace's own commands,
printed before it runs. A stage whose files are there is left out, and an interrupted one goes on where it was: run the
same command again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import fetch
from rich.console import Console

from crosstrace.graphs import write_atomically

HOURS = 0.5
# Minutes of the whole that are set aside for the rest: fetching, evaluation, cards, graphs and their tests.
OTHER_MINUTES = 15.0
SHORT = 30.0  # minutes of training up to which the rest is kept short, too
CARD_WORDS = {"short": 45_000, "long": 75_000}  # of the texts: 60,000 and 100,000 tokens; rare features need many
EVALUATION_TOKENS = {"short": 2048, "long": 4096}  # of held-out text: two minutes and four


class Pipeline:
    """A folder of work, and its stages.

    Attributes:
        work: The folder.
        minutes: Minutes of training.
        seed: The seed of the training.
        extent: `short` or `long`: how much text cards and evaluation see.
        spent: Seconds of each stage that ran.
    """

    def __init__(self, work: Path, minutes: float, seed: int) -> None:
        self.work, self.minutes, self.seed = work, minutes, seed
        self.model, self.transcoders, self.cards = work / "model.gguf", work / "transcoders", work / "cards.safetensors"
        self.extent = "short" if minutes <= SHORT else "long"
        self.console = Console()
        self.spent: dict[str, float] = {}

    def run(self) -> None:
        """Run what is not done yet."""
        start = time.monotonic()
        self._stage("fetch", self._fetch)
        self._stage("train", self._train)
        self._stage("cards", self._make_cards)
        self._stage("gallery", self._tell)
        self._report()
        self.console.print(
            f"Done in {(time.monotonic() - start) / 60:.1f} min. Read {self.work}/report.md, and open "
            f"{self.work}/gallery/*.html in a browser.",
            markup=False,
        )

    def _stage(self, name: str, work) -> None:  # type: ignore[no-untyped-def]
        start = time.monotonic()
        work()
        self.spent[name] = time.monotonic() - start
        self.console.print(f"-- {name}: {self.spent[name]:.0f} s", markup=False)

    def _fetch(self) -> None:
        fetch.fetch_model(self.work, self.console)
        self.texts = fetch.fetch_texts(self.work, self.console, more=self.extent == "long")

    def _train(self) -> None:
        if (self.transcoders / "report.json").is_file():
            self.console.print(f"{self.transcoders} is trained", markup=False)
            return
        begun = (self.transcoders / "training.json").is_file()
        self._crosstrace(
            "train",
            "clt",
            *self._corpus(),
            *("-o", self.transcoders, "--minutes", f"{self.minutes:g}", "--seed", self.seed),
            *("--evaluation-tokens", EVALUATION_TOKENS[self.extent], "--model", self.model),
            *(["--resume"] if begun else []),
        )

    def _make_cards(self) -> None:
        if self.cards.is_file():
            self.console.print(f"{self.cards} is there", markup=False)
            return
        chosen = self._some_documents()
        begun = ["--resume"] if Path(f"{self.cards}.partial").is_dir() else []
        self._crosstrace("features", *self._in_model(), "--corpus", chosen, "-o", self.cards, *begun)

    def _some_documents(self) -> Path:
        """A file with documents from all texts, evenly spread."""
        documents = [line for path in self.texts for line in path.read_text("utf-8").splitlines(keepends=True)]
        words = sum(len(line.split()) for line in documents)
        every = max(1, words // CARD_WORDS[self.extent])
        path = self.work / "text" / "for_cards.txt"
        write_atomically(path, "".join(documents[::every]).encode())
        return path

    def _tell(self) -> None:
        if (self.work / "gallery" / "gallery.json").is_file():
            self.console.print(f"{self.work / 'gallery'} is there", markup=False)
            return
        script = Path(__file__).with_name("gallery.py")
        self._say_and_run([sys.executable, str(script), str(self.work)])

    def _report(self) -> None:
        record = json.loads((self.transcoders / "report.json").read_text())
        layers, everything = record["layers"], record["all"]
        run = json.loads((self.transcoders / "training.json").read_text())
        dead = run["run"].get("end to end", run["run"]["training"])["dead"]
        texts = json.loads((self.work / "text" / "manifest.json").read_text())
        lines = [
            "# A cross-layer transcoder for Gemma 3 270M",
            "",
            f"{self.minutes:g} minutes of training, seed {self.seed}; measured on {record['tokens']:,} tokens of held-out "
            "documents.",
            "",
            "| | |",
            "| --- | --- |",
            f"| FVU, mean over layers | {_mean(layers, 'fvu'):.3f} |",
            f"| FVU weighted by dimension | {_mean(layers, 'fvu_weighted'):.3f} |",
            f"| L0 of a layer | {_mean(layers, 'l0'):.1f} |",
            f"| features that stay silent on those tokens | {_mean(layers, 'dead'):.2%} |",
            f"| dead features: silent in the last {run['settings']['dead_after_tokens']:,} tokens of training | "
            f"{sum(dead) / len(dead):.2%} |",
            f"| cross-entropy: model, replaced, MLPs zeroed | {everything['ce_model']:.2f}, {everything['ce_replaced']:.2f}, "
            f"{everything['ce_zero']:.2f} |",
            f"| Δ cross-entropy, every MLP replaced | {everything['ce_replaced'] - everything['ce_model']:.2f} |",
            f"| same top token | {everything['top1']:.2f} |",
            "",
            "Texts: "
            + "; ".join(f"{name}, {one['words']:,} words, {one['licence']}" for name, one in texts.items())
            + ".",
            "",
            "Seconds of this run: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.spent.items()) + ".",
            "",
            "## Circuits",
            "",
            (self.work / "gallery" / "gallery.md").read_text(),
        ]
        write_atomically(self.work / "report.md", "\n".join(lines).encode())

    def _corpus(self) -> list[object]:
        return [part for path in self.texts for part in ("--corpus", path)]

    def _in_model(self) -> list[object]:
        return ["--model", self.model, "--transcoders", self.transcoders]

    def _crosstrace(self, *arguments: object) -> None:
        command = Path(sys.executable).with_name("crosstrace")
        self._say_and_run([str(command), *map(str, arguments)])

    def _say_and_run(self, command: list[str]) -> None:
        self.console.print(f"$ {shlex.join([Path(command[0]).name, *command[1:]])}", markup=False, highlight=False)
        if code := subprocess.run(command, check=False).returncode:
            raise SystemExit(code)


def _mean(layers: list[dict[str, float]], key: str) -> float:
    return sum(layer[key] for layer in layers) / len(layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--hours", type=float, default=HOURS, help="how long all of it is planned to take (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    minutes = chosen.hours * 60 - OTHER_MINUTES
    if minutes <= 0:
        parser.error(
            f"--hours {chosen.hours:g}: expected more than {OTHER_MINUTES / 60:.2f}, which all but training takes"
        )
    chosen.work.mkdir(parents=True, exist_ok=True)
    Pipeline(chosen.work, minutes, chosen.seed).run()


if __name__ == "__main__":
    main()
