"""A prompt before and after interventions: the top tokens side by side, and what is generated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

from crosstrace.graphs import write_atomically
from crosstrace.graphs.text import short, visible
from crosstrace.replacement_model import (
    Ablate,
    Add,
    FeatureAt,
    Freeze,
    Intervention,
    LocalReplacementModel,
    ReplacementModel,
    Scale,
    Set,
    Supernode,
    SwapIn,
)
from crosstrace.replacement_model.interventions.edits import resolve
from crosstrace.replacement_model.interventions.kinds import Errors
from crosstrace.replacement_model.prompts import Prompt

SHOWN = 3  # active features named for an intervention
_NUMERIC: dict[str, Callable[[str, float], Intervention]] = {"set": Set, "scale": Scale, "add": Add}
# A reference may be a quoted label, which may hold an equals sign.
_ASSIGNMENT = re.compile(r'\s*("[^"]*"[^=]*|[^=]*)=(.*)', re.DOTALL)


@dataclass(frozen=True)
class TokenChange:
    """One output token before and after."""

    token: int
    string: str
    before: float  # probability
    after: float
    logit_change: float  # less the mean change over the vocabulary, which changes no probability


@dataclass(frozen=True)
class Comparison:
    """A prompt before and after interventions; ``before`` and ``after`` are the top tokens of either.

    ``found`` says for each intervention which of the features it names were active in the unchanged prompt, and how much.
    """

    prompt: str
    token_strings: list[str]
    interventions: list[str]
    found: list[str]
    freeze: str
    errors: str
    before: list[TokenChange]
    after: list[TokenChange]
    generated_before: str | None
    generated_after: str | None


def parse_intervention(verb: str, text: str) -> Intervention:
    """An intervention as it is written on the command line: ``L3/417@7=0``, ``"Texas"=2``, for ``ablate`` no value.

    Args:
        verb: ``set``, ``scale``, ``add``, ``ablate`` or ``swap-in``.

    Raises:
        ValueError: nothing after ``=``, or no number where one is needed.

    Example:
        >>> parse_intervention("scale", '"Texas"@5:=-2')
        Scale(where='"Texas"@5:', factor=-2.0)
    """
    if verb == "ablate":
        return Ablate(text)
    match = _ASSIGNMENT.fullmatch(text)
    if match is None or not match[1].strip() or not match[2].strip():
        example = (
            "FEATURE=PROMPT, as in L3/417@7='another prompt'"
            if verb == "swap-in"
            else "FEATURE=VALUE, as in L3/417@7=2"
        )
        raise ValueError(f"--{verb} {text!r}: write {example}; FEATURE may be a label, as in '\"Texas\"@5:'")
    where, value = match[1].strip(), match[2].strip()
    if verb == "swap-in":
        return SwapIn(where, value)
    try:
        return _NUMERIC[verb](where, float(value))
    except ValueError:
        raise ValueError(f"--{verb} {text!r}: {value!r} is not a number") from None


def compare(
    model: ReplacementModel,
    prompt: Prompt,
    interventions: Sequence[Intervention],
    freeze: str = "iterative",
    free_attention: bool = False,
    errors: str = "frozen",
    top: int = 10,
    max_new_tokens: int = 0,
) -> Comparison:
    """Run a prompt with and without interventions.

    Args:
        free_attention: recompute attention patterns too, whatever ``freeze`` says of features.
        top: how many tokens of either to compare.
        max_new_tokens: generate so many from either; 0: none.

    Raises:
        ValueError: prompt, interventions or settings cannot be used; one line.

    Example:
        >>> compare(model, "The capital of the state containing Dallas is", [Ablate("Texas")]).after[0].string
    """
    held = Freeze.parse(freeze)
    if free_attention:
        if held.name == "direct":
            raise ValueError("direct effects are read with attention frozen; free it under constrained or iterative")
        held = replace(held, attention=False)
    local = model.local(prompt)
    localize = model.localizer()  # what is swapped in from is run once, and can be told about
    named = list(interventions)
    interventions = [replace(one, source=localize(one.source)) if isinstance(one, SwapIn) else one for one in named]
    treatment = cast(Errors, errors)  # checked by the passes
    if max_new_tokens:  # an open end means generated tokens too, and interventions may name them
        after = model.generate(local, interventions, max_new_tokens, held, treatment, return_logits=True)
        before = model.generate(local, (), max_new_tokens=max_new_tokens)
        assert after.logits_rtv is not None
        logits_v, texts = after.logits_rtv[0, 0], [before.texts[0], after.texts[0]]
    else:
        logits_v, texts = model.intervene(local, interventions, held, treatment).logits_v, []
    if not bool(logits_v.isfinite().all()):
        raise ValueError("the logits are no longer finite numbers: these values are too large for float32 arithmetic")
    tops = _changes(model, local.logits(), logits_v, top)
    return Comparison(
        prompt=prompt if isinstance(prompt, str) else " ".join(model.token_strings(local.tokens_p)),
        token_strings=model.token_strings(local.tokens_p),
        interventions=[_describe(intervention) for intervention in named],
        found=[_found(intervention, local, max_new_tokens) for intervention in interventions],
        freeze=freeze + (", attention free" if free_attention else ""),
        errors=errors,
        before=tops[0],
        after=tops[1],
        generated_before=texts[0] if texts else None,
        generated_after=texts[1] if texts else None,
    )


def _changes(model: ReplacementModel, before_v: Tensor, after_v: Tensor, top: int) -> list[list[TokenChange]]:
    """The top tokens before, and those after."""
    change_v = (after_v - before_v).double()
    change_v -= change_v.mean()
    p_before_v, p_after_v = before_v.double().softmax(-1), after_v.double().softmax(-1)
    lists = []
    for probability_v in (p_before_v, p_after_v):
        tokens = probability_v.topk(min(top, len(probability_v))).indices
        strings = model.token_strings(tokens.cpu())
        lists.append(
            [
                TokenChange(token, string, p_before_v[token].item(), p_after_v[token].item(), change_v[token].item())
                for token, string in zip(tokens.tolist(), strings, strict=True)
            ]
        )
    return lists


def _describe(intervention: Intervention) -> str:
    where = intervention.where
    match intervention:
        case Set(value=value):
            values = value if isinstance(value, tuple) else (value,)
            return f"set {where} to {', '.join(f'{one:g}' for one in values)}"
        case Scale(factor=factor):
            return f"scale {where} by {factor:g}"
        case Add(amount=amount):
            return f"add {amount:g} to {where}"
        case Ablate():
            return f"ablate {where}"
        case SwapIn(source=source):
            prompt = repr(source) if isinstance(source, str) else "another prompt"
            return f"swap in {where} from {prompt}"


def _found(intervention: Intervention, local: LocalReplacementModel, n_generated: int) -> str:
    """Which of the named features were active: an intervention may change nothing because none was.

    Of those that are swapped in, which are active where they come from.
    """
    where, labels = intervention.where, local.transcoders.labels
    if not isinstance(where, (str, FeatureAt, Supernode)):
        return ""
    read, at = local, "here"
    places = list(resolve([Ablate(where)], local, lambda _: local, n_generated).features)
    features = {(layer, feature) for layer, _, feature in places}
    if isinstance(intervention, SwapIn) and isinstance(intervention.source, LocalReplacementModel):
        read, at = intervention.source, "there"
        if intervention.source_position is not None:
            there = intervention.source_position % read.n_positions
            places = [(layer, there, feature) for layer, feature in sorted(features)]
    activations = zip(map(tuple, read.activations.indices.tolist()), read.activations.values.tolist(), strict=True)
    wanted = set(places)
    active = [(place, value) for place, value in activations if place in wanted]
    name = labels.get(next(iter(features)), "") if len(features) == 1 else ""
    said = f'"{name}", ' if name else f"{len(features)} features, " if len(features) > 1 else ""
    if not active:
        return f"{said}not active {at}"
    if len(places) == 1:
        return f"{said}{active[0][1]:.3g} {at}"
    shown = [f"L{layer}/{feature}@{position} {value:.3g}" for (layer, position, feature), value in active[:SHOWN]]
    more = [f"and {len(active) - SHOWN} more"] if len(active) > SHOWN else []
    return f"{said}active {at}: {', '.join(shown + more)}"


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the top tokens before and after side by side."""
    subtitle = Text(f"{comparison.freeze}, errors {comparison.errors}", style="dim")
    heading = Panel(Text(visible(comparison.prompt), style="bold"), subtitle=subtitle, box=box.ROUNDED)
    done = Text()
    for line, found in zip(comparison.interventions, comparison.found, strict=True):
        done.append(f"· {visible(line)}").append(f"  {visible(found)}\n" if found else "\n", style="dim")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for side in ("before", "after"):
        table.add_column(f"top {side}", style="bold", no_wrap=True, overflow="ellipsis")
        for name in ("before", "after", "logit"):
            table.add_column(name, justify="right", no_wrap=True)
        if side == "before":
            table.add_column("│", style="dim")
    for before, after in zip(comparison.before, comparison.after, strict=True):
        table.add_row(*_cells(before), "│", *_cells(after))
    parts: list[RenderableType] = [heading, done, table]
    if comparison.generated_before is not None:
        for name, text in (("before", comparison.generated_before), ("after", comparison.generated_after or "")):
            parts.append(Text.assemble((f"{name:>7}  ", "bold"), visible(text) or "(ends at once)"))
    console.print(Group(*parts))


def _cells(change: TokenChange) -> list[Text]:
    """A token, its probability before and after, and the change of its centred logit."""
    style = "cyan" if change.logit_change >= 0 else "red"
    after, logit = Text(f"{change.after:.3f}", style=style), Text(f"{change.logit_change:+.2f}", style=style)
    return [Text(short(change.string)), Text(f"{change.before:.3f}"), after, logit]


def check_report_file(path: Path | None) -> None:
    """Find a wrong suffix or folder before the model is loaded.

    Raises:
        ValueError: not a ``.json`` file. OSError: no such folder.
    """
    if path is None:
        return
    if path.suffix.lower() != ".json":
        raise ValueError(f"cannot write {str(path)!r}: the result is written as .json")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: output folder {path.absolute().parent} does not exist")


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON, whole or not at all."""
    content = json.dumps(asdict(comparison), indent=1, ensure_ascii=True, allow_nan=False)
    write_atomically(path, content.encode())
