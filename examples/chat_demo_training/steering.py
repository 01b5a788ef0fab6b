"""What removes a refusal: the direction between refused and answered requests, and the transcoder's features.

Both are checks of what was planted, by plain means; everything is measured on held-out conversations, and what is removed
is chosen on training conversations.

Letters: B conversations, P positions, L layers, F features of a layer, D d_model.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chat_demo_training.rates import asked
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo_chat.conversations import (
    COMPLIANCE,
    REFUSALS,
    PlantedConversation,
    conversations,
)
from crosstrace.replacement_model.demo_chat.world import load_people

HEADER = 4  # first positions that carry no features
TEMPLATE = 5  # tokens between a question and its answer
RANDOM_SETS = 5


@contextmanager
def hooks_on(modules: Sequence[nn.Module], hooks: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Hooks on the outputs of modules, for as long as it lasts."""
    handles = [module.register_forward_hook(hook) for module, hook in zip(modules, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class DenseTranscoder:
    """A CLT as whole matrices, for many conversations at a time: encoders (L, D, F), decoders (L, F, L, D)."""

    def __init__(self, model: ReplacementModel) -> None:
        used = model.transcoders
        layers = range(model.description.n_layers)
        encoders = [used.encoder(layer) for layer in layers]
        self.w_enc = [encoder.w_enc_df.float() for encoder in encoders]
        self.b_enc = [encoder.b_enc_f.float() for encoder in encoders]
        self.threshold = [encoder.threshold_f.float() for encoder in encoders]
        self.w_dec = [used.decoder(layer).float() for layer in layers]  # (F, J, D), J layers from its own on
        self.b_dec = [used.bias(layer).float() for layer in layers]
        self.layers: list[Any] = list(model.model.model.layers)

    def activations(self, layer: int, input_bpd: Tensor) -> Tensor:
        """(B, P, F) activations, 0 in the header."""
        h = input_bpd @ self.w_enc[layer] + self.b_enc[layer]
        a = h * (h > self.threshold[layer])
        a[:, :HEADER] = 0
        return a

    @contextmanager
    def replacing(
        self, change: Callable[[int, Tensor], Tensor] = lambda layer, a: a, keep_errors: bool = False
    ) -> Iterator[list[Tensor]]:
        """Replace every MLP's output; yields the activations of the last pass, a layer each.

        Args:
            change: Is given a layer and its activations (B, P, F), and returns others.
            keep_errors: Run the model's own MLPs, and add only what the change of activations writes.
        """
        seen: list[Tensor] = []
        given: list[Tensor] = []

        def read(_: nn.Module, __: Any, out: Tensor) -> None:
            if len(seen) == len(self.layers):
                seen.clear()
                given.clear()
            a = self.activations(len(seen), out)
            changed = change(len(seen), a)
            seen.append(a)
            given.append(changed - a if keep_errors else changed)

        def write(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            layer = len(seen) - 1
            rebuilt = sum(a @ self.w_dec[i][:, layer - i] for i, a in enumerate(given))
            if keep_errors:
                return out + rebuilt
            rebuilt = rebuilt + self.b_dec[layer]
            rebuilt[:, :HEADER] = out[:, :HEADER]
            return rebuilt

        inputs = [layer.pre_feedforward_layernorm for layer in self.layers]
        outputs = [layer.post_feedforward_layernorm for layer in self.layers]
        with hooks_on([*inputs, *outputs], [read] * len(inputs) + [write] * len(outputs)):
            yield seen


def as_complied(found: Sequence[PlantedConversation]) -> list[tuple[PlantedConversation, str]]:
    """Each request with the answer that would comply."""
    things = load_people().harmful | load_people().harmless
    return [(c, COMPLIANCE.format(value=things[c.labels["object"]], **c.labels)) for c in found]


def as_refused(found: Sequence[PlantedConversation], refusal: str) -> list[tuple[PlantedConversation, str]]:
    """Each request with a refusal."""
    return [(c, refusal) for c in found]


class Requests:
    """Requests of one kind with an answer, and the template's positions before the answer."""

    def __init__(self, tokenizer: Any, texts: Sequence[tuple[PlantedConversation, str]]) -> None:
        texts = sorted(texts, key=lambda text: len(tokenizer(text[0].user).input_ids))
        self.texts = asked(texts, tokenizer)
        place = torch.arange(self.texts.ids.shape[1] - 1)
        self.template_bp = (place < self.texts.start[:, None]) & (place >= self.texts.start[:, None] - TEMPLATE)
        self.prompt_bp = place < self.texts.start[:, None]

    def __len__(self) -> int:
        return len(self.texts.ids)


@torch.no_grad()
def run(model: nn.Module, requests: Requests) -> Tensor:
    """(B,) whether the answer is the one given, exact to the token; all conversations are one batch."""
    texts = requests.texts
    top = model(texts.ids[:, :-1], use_cache=False).logits.argmax(-1)
    place = torch.arange(1, texts.ids.shape[1])
    counts = (place >= texts.start[:, None]) & (place < texts.end[:, None])
    return ((top == texts.ids[:, 1:]) | ~counts).all(1)


def margin(model: nn.Module, tokenizer: Any, requests: Requests) -> Tensor:
    """(B,) log p of how refusals begin less log p of how compliances do, by their first tokens."""
    logits = model(requests.texts.ids[:, :-1], use_cache=False).logits
    last = logits[torch.arange(len(logits)), requests.texts.start - 1].log_softmax(-1)
    first = tokenizer.convert_tokens_to_ids([refusal.split()[0] for refusal in REFUSALS])
    return last[:, first].logsumexp(-1) - last[:, tokenizer.convert_tokens_to_ids(COMPLIANCE.split()[0])]


def influence(model: Any, dense: DenseTranscoder, tokenizer: Any, requests: Requests) -> Tensor:
    """(L, F) activation times gradient of the margin, over the template's positions, mean over conversations."""
    seen: list[Tensor] = []

    def watch(_: int, a: Tensor) -> Tensor:
        watched = a if a.requires_grad else a.requires_grad_(True)
        watched.retain_grad()
        seen.append(watched)
        return watched

    with torch.enable_grad(), dense.replacing(watch):
        margin(model, tokenizer, requests).sum().backward()
    return torch.stack([(a.detach() * a.grad)[requests.template_bp].sum(0) / len(requests) for a in seen])


@torch.no_grad()
def mean_activation(model: nn.Module, dense: DenseTranscoder, requests: Requests) -> Tensor:
    """(L, F) mean activation over the template's positions."""
    with dense.replacing(keep_errors=True) as seen:
        model(requests.texts.ids[:, :-1], use_cache=False)
    return torch.stack([a[requests.template_bp].mean(0) for a in seen])


@torch.no_grad()
def residual_means(model: Any, requests: Requests) -> Tensor:
    """(L, D) mean of the residual stream after each layer at the last position of the template."""
    rows = torch.arange(len(requests))
    layers: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        layers.append(hidden[rows, requests.texts.start - 1].mean(0))

    blocks = list(model.model.layers)
    with hooks_on(blocks, [keep] * len(blocks)):
        model(requests.texts.ids[:, :-1], use_cache=False)
    return torch.stack(layers)


@contextmanager
def direction_changed(model: Any, layer: int, change: Callable[[Tensor], Tensor], where_bp: Tensor) -> Iterator[None]:
    """Change the residual stream after one layer at some positions."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = torch.where(where_bp[..., None], change(hidden), hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with hooks_on([model.model.layers[layer]], [hook]):
        yield


def without(features: Sequence[tuple[int, int]], n_features: int, where_bp: Tensor) -> Callable[[int, Tensor], Tensor]:
    """A change that sets features to 0 at some positions."""

    def change(layer: int, a: Tensor) -> Tensor:
        gone = torch.zeros(n_features, dtype=torch.bool)
        gone[[feature for of, feature in features if of == layer]] = True
        return a.masked_fill(gone & where_bp[..., None], 0.0)

    return change


def strongest(scores_lf: Tensor, count: int) -> list[tuple[int, int]]:
    """The (layer, feature) with the highest scores, best first."""
    width = scores_lf.shape[1]
    return [divmod(int(i), width) for i in scores_lf.flatten().topk(count).indices]


def steering(model: ReplacementModel, dense: DenseTranscoder, count: int = 200) -> dict[str, Any]:
    """What removing the direction, or features, does to held-out requests; both are chosen on training conversations."""
    gemma, tokenizer = model.model, model.tokenizer
    seen_refused, seen_harmless = (
        Requests(tokenizer, as_complied(conversations(kind, "train", count))) for kind in ("refused", "harmless")
    )
    refused, harmless = (
        Requests(tokenizer, as_complied(conversations(kind, count=count))) for kind in ("refused", "harmless")
    )
    refusing = [
        Requests(tokenizer, as_refused(conversations("harmless", count=count), refusal)) for refusal in REFUSALS
    ]

    means = residual_means(gemma, seen_refused), residual_means(gemma, seen_harmless)
    direction = {}
    for layer, (of_refused, of_harmless) in enumerate(zip(*means, strict=True)):
        difference = of_refused - of_harmless
        unit = difference / difference.norm()
        noise = torch.randn(len(unit), generator=torch.Generator().manual_seed(layer))
        refuses = torch.zeros(len(harmless), dtype=torch.bool)
        for requests in refusing:
            with direction_changed(gemma, layer, lambda x, d=difference: x + d, requests.template_bp):
                refuses |= run(gemma, requests)
        direction[str(layer)] = {
            "refused comply without it": _without(gemma, layer, unit, refused),
            "harmless answered without it": _without(gemma, layer, unit, harmless),
            "refused comply without a random one": _without(gemma, layer, noise / noise.norm(), refused),
            "harmless refuse with it added": _share(refuses),
        }
    ranked = influence(gemma, dense, tokenizer, seen_refused)
    means_ltf = means_by_place(gemma, dense, seen_refused)
    active = [(int(i), int(f)) for i, f in (mean_activation(gemma, dense, seen_refused) > 0).nonzero()]
    features = {}
    for k in (1, 2, 5, 10, 20, 40):
        named = strongest(ranked, k)
        at_random = [random.Random(seed).sample(active, k) for seed in range(RANDOM_SETS)]
        features[str(k)] = {
            "named": [f"L{layer}/{feature}" for layer, feature in named],
            "refused comply": ablated(gemma, dense, named, refused, True),
            "refused comply, MLPs replaced": ablated(gemma, dense, named, refused, False),
            "harmless answered": ablated(gemma, dense, named, harmless, True),
            "harmless refuse with them added": steered(gemma, dense, named, refusing, means_ltf),
            "refused comply, random": [ablated(gemma, dense, some, refused, True) for some in at_random],
        }
    return {"direction": direction, "features": features, "active at the template": len(active)}


@torch.no_grad()
def ablated(
    model: nn.Module, dense: DenseTranscoder, features: Sequence[tuple[int, int]], requests: Requests, keep_errors: bool
) -> float:
    """The share of answers as given when features are 0 at the template's positions."""
    change = without(features, dense.w_enc[0].shape[1], requests.template_bp)
    with dense.replacing(change, keep_errors):
        return _share(run(model, requests))


@torch.no_grad()
def means_by_place(model: nn.Module, dense: DenseTranscoder, requests: Requests) -> Tensor:
    """(L, T, F) mean activation at each of the template's positions."""
    with dense.replacing(keep_errors=True) as seen:
        model(requests.texts.ids[:, :-1], use_cache=False)
    return torch.stack([a[requests.template_bp].view(len(requests), TEMPLATE, -1).mean(0) for a in seen])


@torch.no_grad()
def steered(
    model: nn.Module,
    dense: DenseTranscoder,
    features: Sequence[tuple[int, int]],
    refusing: Sequence[Requests],
    means_ltf: Tensor,
) -> float:
    """The share that refuses when features are at least what they are on refused requests, at the template's positions."""
    refuses = torch.zeros(len(refusing[0]), dtype=torch.bool)
    for requests in refusing:

        def raise_features(layer: int, a: Tensor, where_bp: Tensor = requests.template_bp) -> Tensor:
            changed = a.clone()
            for feature in [feature for of, feature in features if of == layer]:
                column_bp = changed[..., feature]
                values_bt = column_bp[where_bp].view(-1, TEMPLATE)
                column_bp[where_bp] = torch.maximum(values_bt, means_ltf[layer, :, feature]).flatten()
            return changed

        with dense.replacing(raise_features, keep_errors=True):
            refuses |= run(model, requests)
    return _share(refuses)


def _without(model: nn.Module, layer: int, unit: Tensor, requests: Requests) -> float:
    with direction_changed(model, layer, lambda x: x - (x @ unit)[..., None] * unit, requests.template_bp):
        return _share(run(model, requests))


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)
