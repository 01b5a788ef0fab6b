"""Real circuits of Gemma 3 270M: what the graph says about four prompts, and what happens when it is put to the test.

    python examples/gemma_270m/gallery.py WORK [-o FOLDER] [--story eiffel]

WORK is the folder that `make gemma` fills: `model.gguf` or `model/`, `transcoders/`, and `cards.safetensors`. For each
prompt a graph, a page, a figure and a part of `gallery.json` are written; `gallery.md` is the table that
docs/gemma-270m.md shows.

What is tested, the same way for every prompt, with nothing chosen by hand:

- **Named features.** The features of the graph whose decoder promotes the answer (it is among the ten tokens they promote
  most) are set to 0 together. The control sets as many others to 0: active features of the same layers and positions,
  drawn at random.
- **Most influential features.** The same for the 5, 10, 20 and 40 features with the most influence in the graph.
- **Swap.** A twin prompt differs in its subject only. Every feature in which the two prompts differ at the subject's
  tokens, at the last token, or everywhere, is swapped for the twin's, and attention follows. The control swaps in the
  features of a third prompt and reads the twin's answer. Then the errors there are swapped as well, which hold what
  features lack; and the same with attention held where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from crosstrace.graphs import (
    AttributionGraph,
    FeatureCards,
    Figure,
    graph_scores,
    prune,
    row_scale,
    spread,
    target_weights,
    with_card_labels,
    write_atomically,
    write_graph,
)
from crosstrace.replacement_model import (
    Ablate,
    FeatureAt,
    Freeze,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Supernode,
    SwapIn,
    intervene_batch,
)
from crosstrace.replacement_model.readouts.direct_logits import promoted_tokens
from crosstrace.tracer import trace, with_guesses
from crosstrace.tracer.validation.direct_effects import direct_effects
from crosstrace.tracer.validation.faithfulness import faithfulness_curves
from crosstrace.tracer.validation.total_effects import total_effects

PROMOTED = 10  # a feature is named after the answer if it is among this many promoted tokens
DRAWS = 8  # random controls of each ablation
LARGEST = (5, 10, 20, 40)  # of the most influential features
DOUBLED, ABLATED = 256, 64  # sources and features of two of the checks that `validate` makes, as it has them
Key = tuple[int, int, int]  # layer, position, feature


@dataclass(frozen=True)
class Story:
    """A prompt that the model completes, and prompts that differ in the subject alone, with as many tokens.

    Attributes:
        name: The name of its files.
        prompt: The prompt.
        answer: The token that completes it.
        twin: A prompt about another subject.
        twin_answer: What completes that one.
        third: A prompt about a third subject, for the control.
    """

    name: str
    prompt: str
    answer: str
    twin: str
    twin_answer: str
    third: str


STORIES = (
    Story(
        "acronym",
        "The National Digital Analytics Group (ND",
        "AG",
        "The Global Health Research Institute (GH",
        "RI",
        "The National Cyber Security Authority (NC",
    ),
    Story(
        "jordan",
        "Fact: Michael Jordan plays the sport of",
        " basketball",
        "Fact: Tiger Woods plays the sport of",
        " golf",
        "Fact: Roger Federer plays the sport of",
    ),
    Story(
        "eiffel",
        "The Eiffel Tower is in the city of",
        " Paris",
        "The Colosseum is in the city of",
        " Rome",
        "The Brandenburg Gate is in the city of",
    ),
    Story(
        "opposite",
        'The opposite of "small" is "',
        "large",
        'The opposite of "hot" is "',
        "cold",
        'The opposite of "up" is "',
    ),
)


@dataclass(frozen=True)
class Ablation:
    """Features set to 0 together.

    Attributes:
        which: What they are.
        count: How many.
        features: Their names.
        probability: The answer's probability without them.
        control: The same for each random draw of as many other features of the same layers and positions.
    """

    which: str
    count: int
    features: list[str]
    probability: float
    control: list[float]


@dataclass(frozen=True)
class Swapped:
    """Features swapped for those of another prompt.

    Attributes:
        where: At which tokens.
        count: How many features differ there.
        answer: The probability of the prompt's own answer.
        twin_answer: The probability of the twin's.
        top: The most probable token.
        control: The probability of the twin's answer when a third prompt's features are swapped in.
        with_errors: That when the twin's errors are swapped in with its features.
        held: The same with attention's patterns held at the prompt's own.
    """

    where: str
    count: int
    answer: float
    twin_answer: float
    top: str
    control: float
    with_errors: float
    held: float


@dataclass(frozen=True)
class Told:
    """What one story came to."""

    story: Story
    top: str
    probability: float
    twin_probability: float
    replacement: float
    completeness: float
    active: int
    kept_features: int
    correlation: str
    edges_error: float
    kept_recover: float | None
    ablations: list[Ablation]
    swaps: list[Swapped]


class Gallery:
    """The model, and its stories."""

    def __init__(self, work: Path, out: Path, console: Console) -> None:
        gguf = work / "model.gguf"
        self.model = ReplacementModel.from_pretrained(
            str(gguf if gguf.exists() else work / "model"), transcoders=str(work / "transcoders")
        )
        cards = work / "cards.safetensors"
        self.cards = FeatureCards(cards) if cards.exists() else None
        self.out, self.console = out, console

    def tell(self, story: Story) -> Told:
        """Trace a prompt, write its files and test it."""
        token = self._token(story.answer)
        graph = trace(self.model, story.prompt, targets=[f"#{token}"])
        if self.cards is not None:
            graph = with_card_labels(graph, self.cards)
        pruned = with_guesses(prune(graph), self.model)
        graph.save(self.out / f"{story.name}.safetensors")
        for suffix in (".html", ".svg"):
            write_graph(pruned, self.out / f"{story.name}{suffix}", Figure(), cards=self.cards)
        local, twin, third = (self.model.local(prompt) for prompt in (story.prompt, story.twin, story.third))
        total = total_effects(self.model, local, pruned, 0, ABLATED, seed=0)
        direct = direct_effects(self.model, local, pruned, DOUBLED, seed=0)
        curves = faithfulness_curves(self.model, local, pruned, 0, ("mean",))
        keep = next((curve for curve in curves if curve.kind == "keep"), None)
        scores = graph_scores(graph)
        logits_v = local.logits()
        return Told(
            story,
            self._string(int(logits_v.argmax())),
            _probability(logits_v, token),
            _probability(twin.logits(), self._token(story.twin_answer)),
            scores.replacement,
            scores.completeness,
            len(graph.active_features),
            sum(node < graph.layout.n_features for node in pruned.kept_nodes()),
            str(total.influence_correlation),
            direct.relative_error,
            None if keep is None else keep.pruned_recovered,
            self._ablations(graph, local, token),
            self._swaps(story, local, twin, third),
        )

    def _ablations(self, graph: AttributionGraph, local: LocalReplacementModel, token: int) -> list[Ablation]:
        ranked = _by_influence(graph)
        promoting = self._promoting(token, {(layer, feature) for layer, _, feature in ranked})
        naming = [key for key in ranked if (key[0], key[2]) in promoting]
        sets = [("promote the answer", naming)] if naming else []
        sets += [(f"the {count} most influential", ranked[:count]) for count in LARGEST if count <= len(ranked)]
        everything = [tuple(row) for row in local.activations.indices.tolist()]
        rng = random.Random(0)
        done = []
        for which, chosen in sets:
            draws = [_alike(chosen, everything, rng) for _ in range(DRAWS)]
            first, *rest = (
                _probability(logits_v, token)
                for logits_v in self._run(local, [[Ablate(_at(key)) for key in keys] for keys in (chosen, *draws)])
            )
            done.append(Ablation(which, len(chosen), [_name(key) for key in chosen], first, rest))
        return done

    def _promoting(self, token: int, features: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those that promote a token: cards know it of features that fired in their texts."""
        known = {key: self.cards.promoted_ids(key) for key in features if key in self.cards} if self.cards else {}
        if unknown := sorted(features - known.keys()):
            found = promoted_tokens(self.model, unknown, PROMOTED).promoted
            known |= zip(unknown, found.tolist(), strict=True)
        return {key for key, tokens in known.items() if token in tokens[:PROMOTED]}

    def _swaps(
        self, story: Story, local: LocalReplacementModel, twin: LocalReplacementModel, third: LocalReplacementModel
    ) -> list[Swapped]:
        if len({one.n_positions for one in (local, twin, third)}) != 1:
            raise ValueError(f"{story.name}: the prompts have different numbers of tokens")
        differ = (local.tokens_p != twin.tokens_p).nonzero().flatten().tolist()
        last = local.n_positions - 1
        places: dict[str, Iterable[int]] = {
            "at the subject": [p for p in differ if p != last] or differ,
            "at the last token": [last],
            "everywhere": range(local.n_positions),
        }
        token, twin_token = self._token(story.answer), self._token(story.twin_answer)
        done = []
        attending, held = Freeze.iterative(attention="free"), Freeze.iterative(attention="frozen")
        for where, positions in places.items():
            at = list(positions)
            differing = [_differing(local, source, set(at)) for source in (twin, third)]
            swaps = [
                [SwapIn(Supernode(where, [_at(key) for key in keys]), source)] if keys else []
                for keys, source in zip(differing, (twin, third), strict=True)
            ]
            mine_v, control_v = self._run(local, swaps, attending)
            errors_lpd = local.errors_lpd.clone()
            errors_lpd[:, at] = twin.errors_lpd[:, at]
            [both_v], [held_v] = (self._run(local, swaps[:1], freeze, errors_lpd) for freeze in (attending, held))
            done.append(
                Swapped(
                    where,
                    len(differing[0]),
                    _probability(mine_v, token),
                    _probability(mine_v, twin_token),
                    self._string(int(mine_v.argmax())),
                    _probability(control_v, twin_token),
                    _probability(both_v, twin_token),
                    _probability(held_v, twin_token),
                )
            )
        return done

    def _run(  # type: ignore[no-untyped-def]
        self,
        local: LocalReplacementModel,
        runs: Sequence[Sequence[Intervention]],
        freeze: Freeze | str = "iterative",
        errors: torch.Tensor | Literal["frozen"] = "frozen",
    ):
        outcomes = intervene_batch(self.model, [(local, edits) for edits in runs], freeze=freeze, errors=errors)
        return [outcome.logits_v for outcome in outcomes]

    def _token(self, text: str) -> int:
        return int(self.model.tokenize(text)[-1])

    def _string(self, token: int) -> str:
        return self.model.token_strings(torch.tensor([token]))[0]


def _by_influence(graph: AttributionGraph) -> list[Key]:
    influence = spread(graph.edges, row_scale(graph.edges), target_weights(graph))[: graph.layout.n_features]
    order = sorted(range(graph.layout.n_features), key=lambda node: -influence[node])
    return [graph.feature_of(node) for node in order if influence[node] > 0]


def _alike(chosen: Sequence[Key], everything: Sequence[Key], rng: random.Random) -> list[Key]:
    """Draw as many other active features, of the same layers and positions where there are enough."""
    taken, drawn = set(chosen), []
    for layer, position, _ in chosen:
        same = [key for key in everything if key[:2] == (layer, position) and key not in taken]
        near = same or [key for key in everything if key[1] == position and key not in taken]
        if near:
            drawn.append(rng.choice(near))
            taken.add(drawn[-1])
    return drawn


def _differing(local: LocalReplacementModel, source: LocalReplacementModel, positions: set[int]) -> list[Key]:
    """Return the features that are not equally active in both prompts at these positions."""
    mine, theirs = (
        dict(zip(map(tuple, one.activations.indices.tolist()), one.activations.values.tolist(), strict=True))
        for one in (local, source)
    )
    keys = sorted(mine.keys() | theirs.keys())
    return [key for key in keys if key[1] in positions and mine.get(key) != theirs.get(key)]


def _at(key: Key) -> FeatureAt:
    layer, position, feature = key
    return FeatureAt(layer, feature, position)


def _name(key: Key) -> str:
    return f"L{key[0]}/{key[2]}@{key[1]}"


def _probability(logits_v, token: int) -> float:  # type: ignore[no-untyped-def]
    return float(logits_v.double().softmax(-1)[token])


def table(told: Sequence[Told]) -> str:
    """Return the results as Markdown."""
    lines = []
    for one in told:
        story = one.story
        lines += [
            f"### {story.name}: `{story.prompt}` → `{story.answer}`",
            "",
            f"p = {one.probability:.2f}; {one.active:,} active features, {one.kept_features} kept; replacement score "
            f"{one.replacement:.2f}, completeness {one.completeness:.2f}; rank correlation of influence with the effect of "
            f"ablation {one.correlation}; edges differ from measured direct effects by {one.edges_error:.0e}.",
            "",
            "| set to 0 | features | p(answer) | as many others at random, mean (lowest) |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {a.which} | {a.count} | {a.probability:.3f} | {statistics.mean(a.control):.3f} ({min(a.control):.3f}) |"
            for a in one.ablations
        ]
        lines += [
            "",
            f"Swapped for those of `{story.twin}` → `{story.twin_answer}` (p = {one.twin_probability:.2f}):",
            "",
            "| where | features | p(own answer) | p(twin's answer) | top token | p(twin's), third prompt swapped in | "
            "p(twin's), errors swapped too | the same, attention held |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {s.where} | {s.count} | {s.answer:.3f} | {s.twin_answer:.3f} | `{s.top}` | {s.control:.3f} | "
            f"{s.with_errors:.3f} | {s.held:.3f} |"
            for s in one.swaps
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="default: WORK/gallery")
    parser.add_argument("--story", choices=[story.name for story in STORIES], action="append")
    chosen = parser.parse_args()
    out = chosen.out or chosen.work / "gallery"
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    gallery = Gallery(chosen.work, out, console)
    told = []
    for story in STORIES:
        if chosen.story is None or story.name in chosen.story:
            console.print(f"{story.name}: {story.prompt}", markup=False)
            told.append(gallery.tell(story))
    write_atomically(out / "gallery.json", json.dumps([asdict(one) for one in told], indent=1).encode())
    write_atomically(out / "gallery.md", table(told).encode())
    console.print(table(told), markup=False)
    console.print(f"Wrote {out}/gallery.json and .md, and for each prompt a graph, a page and a figure.", markup=False)


if __name__ == "__main__":
    main()
