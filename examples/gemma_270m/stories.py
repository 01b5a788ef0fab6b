"""Stories of real graphs, put to the test: five prompts of Gemma 3 270M and two of the embedded demo.

    python examples/gemma_270m/stories.py WORK [-o FOLDER] [--only eiffel]

WORK is the folder that `make gemma` fills: `model.gguf` or `model/`, `transcoders/`, and `cards.safetensors`; graphs are
kept in WORK/graphs and not traced again. Of each prompt the default figure (`story-NAME.svg`), the page and the first
screen of it (`story-NAME.png`; needs chromium, node and Pillow) are written, and `stories.json` and `stories.md` with what
was measured.

The check that a story is true: each group or feature that the figure names, the most influential ones first, is set to 0
in the model (attention patterns and norms held, later features recomputed), and the change of the answer's centred logit
stands beside the change that the graph predicts. Both are in the caption.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from crosstrace.graphs import (
    AttributionGraph,
    FeatureCards,
    Figure,
    Story,
    prune,
    story_of,
    with_card_labels,
    write_atomically,
    write_graph,
    write_html,
)
from crosstrace.graphs.analysis.story import layer_range
from crosstrace.graphs.numbers import share, signed
from crosstrace.graphs.text import short
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import cards_of, trace, with_guesses
from crosstrace.tracer.validation.total_effects import total_effects

ROOT = Path(__file__).parents[2]
PROMPTS = {
    "eiffel": "The Eiffel Tower is in the city of",
    "jordan": "Fact: Michael Jordan plays the sport of",
    "acronym": "The National Digital Analytics Group (ND",
    "opposite": 'The opposite of "small" is "',
    "colosseum": "The Colosseum is in the city of",
}
DEMO_PROMPTS = {
    "dallas": "The capital of the state containing Dallas is",
    "oakland": "The capital of the state containing Oakland is",
}
TESTED = 6  # groups of a story


@dataclass(frozen=True)
class Tested:
    """A node of a story set to 0.

    Attributes:
        name: What the figure calls it.
        where: Its layers and token.
        influence: Share of the influence on the target that passes through it.
        predicted: Change of the target's centred logit that the graph predicts.
        measured: The change that was measured.
    """

    name: str
    where: str
    influence: float
    predicted: float
    measured: float


@dataclass(frozen=True)
class Told:
    """A prompt, the story of its graph and what the test of it came to."""

    name: str
    prompt: str
    target: str
    probability: float
    unexplained: float
    entering: dict[str, float]
    nodes: int
    covered: float
    tested: list[Tested]

    def sentence(self) -> str:
        """The caption's."""
        told = "; ".join(
            f"{one.name} ({one.where}) {signed(one.measured)} (graph: {signed(one.predicted)})" for one in self.tested
        )
        return f"Set to 0 in the model, change of the logit of {self.target} (predicted by the graph): {told}."


def main() -> None:
    """Write figures, pages, screenshots and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", choices=[*PROMPTS, *DEMO_PROMPTS], nargs="*")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.work / "graphs").mkdir(parents=True, exist_ok=True)
    told = []
    for prompts, is_demo in ((DEMO_PROMPTS, True), (PROMPTS, False)):
        chosen = {name: prompt for name, prompt in prompts.items() if not given.only or name in given.only}
        if not chosen:
            continue
        model, cards = _demo() if is_demo else _real(given.work)
        for name, prompt in chosen.items():
            told.append(tell(model, cards, name, prompt, given.work / "graphs" / f"{name}.safetensors", given.out))
            print(f"{name}: {told[-1].sentence()}")
    results = given.out / "stories.json"
    if results.exists():  # of the prompts that were not asked for
        again = {one.name for one in told}
        told += [_read(one) for one in json.loads(results.read_bytes()) if one["name"] not in again]
    order = [*DEMO_PROMPTS, *PROMPTS]
    told.sort(key=lambda one: order.index(one.name))
    content = json.dumps([dataclasses.asdict(one) for one in told], ensure_ascii=False, indent=1)
    write_atomically(results, content.encode())
    write_atomically(given.out / "stories.md", "\n".join(table(told)).encode())


def _read(content: dict[str, Any]) -> Told:
    return Told(**{**content, "tested": [Tested(**one) for one in content["tested"]]})


def _demo() -> tuple[ReplacementModel, FeatureCards | None]:
    return ReplacementModel.demo(), None


def _real(work: Path) -> tuple[ReplacementModel, FeatureCards | None]:
    gguf = work / "model.gguf"
    model = ReplacementModel.from_pretrained(
        str(gguf if gguf.exists() else work / "model"), transcoders=str(work / "transcoders")
    )
    cards = work / "cards.safetensors"
    return model, FeatureCards(cards) if cards.exists() else None


def tell(model: ReplacementModel, cards: FeatureCards | None, name: str, prompt: str, file: Path, out: Path) -> Told:
    """Trace a prompt unless that has been done, test its story, and write figure, page and screenshot."""
    if file.exists():
        raw = AttributionGraph.load(file)
    else:
        raw = trace(model, prompt)
        raw.save(file)
    cards = cards or cards_of(raw)
    graph = with_card_labels(with_guesses(prune(raw), model), cards)
    # Folders say nothing to a reader of the page.
    names = {name: Path(getattr(graph, name)).name for name in ("model_name", "transcoders_name")}
    graph = dataclasses.replace(graph, **names)
    story = story_of(graph, cards)
    told = _told(model, name, prompt, story)
    notes = [told.sentence()]
    write_graph(graph, out / f"story-{name}.svg", Figure(story=story, notes=notes))
    page = file.with_suffix(".html")
    write_html(graph, page, cards, notes=notes)
    command = [
        "node",
        ROOT / "viewer" / "test" / "screenshot.mjs",
        page,
        out / f"story-{name}.png",
        "light",
        "1500x950",
    ]
    subprocess.run(command, check=True)
    _shrink(out / f"story-{name}.png")
    return told


def _shrink(picture: Path) -> None:
    """Few colours are in a picture: a palette holds them in a third of the bytes."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            picture, optimize=True
        )


def _told(model: ReplacementModel, name: str, prompt: str, story: Story) -> Told:
    graph, flow = story.graph, story.flow
    named = sorted(
        (node for node in story.nodes if node.kind in ("group", "feature")), key=lambda node: -node.influence
    )
    chosen = named[:TESTED]
    target = graph.layout.logit_of(story.target)
    effects = total_effects(
        model, model.local(prompt), graph, target, 0, 0, [(node.name, node.members) for node in chosen]
    )
    tested = [
        Tested(
            short(node.name or graph.describe(node.members[0]), 40),
            f"{layer_range(node.layers, graph.n_layers)} at {graph.token_name(node.position, 16)}",
            node.influence,
            -predicted,
            -measured,
        )
        for node, predicted, measured in zip(chosen, effects.predicted, effects.measured, strict=False)
    ]
    return Told(
        name,
        prompt,
        graph.target_name(target),
        graph.probability_of(target) or 0.0,
        flow.unexplained,
        {f"{p} {graph.token_name(p)}": float(enters) for p, enters in enumerate(flow.entering) if enters >= 0.01},
        len(story.nodes),
        story.covered,
        tested,
    )


def table(told: list[Told]) -> list[str]:
    """Lines of a table in Markdown: what was tested, predicted and measured."""
    lines = [
        "| Prompt → answer | unexplained | group set to 0 | influence | predicted | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in told:
        prompt = one.prompt.replace("|", "\\|")
        head = f"{prompt} → {one.target}", share(one.unexplained)
        for i, tested in enumerate(one.tested):
            cells = (*(head if not i else ("", "")), f"{tested.name} ({tested.where})", share(tested.influence))
            lines.append(f"| {' | '.join(cells)} | {signed(tested.predicted)} | {signed(tested.measured)} |")
    return lines


if __name__ == "__main__":
    main()
