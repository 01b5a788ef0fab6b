"""The active features of many contexts at once, and nothing else of the pass: what reading a whole corpus needs.

Letters: B contexts of a batch, W positions of the longest, X those of the B * W that are wanted, D the width of a site,
n active entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.hooks import Change, changed, passed_over, without_probabilities
from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.base_model import LoadedModel
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features
from crosstrace.replacement_model.model import dictionary_of

Place = tuple[int, Site]
"""A layer and one of its sites."""
# Called with a layer and its active entries: where, which feature, how strongly.
Sink = Callable[[int, Tensor, Tensor, Tensor], None]


def stream_sites(
    model: LoadedModel,
    places: Sequence[Place],
    tokens_bw: Tensor,
    wanted_bw: Tensor,
    look: Callable[[Place, Tensor], None],
) -> None:
    """Run a batch of contexts through the model and show what it has at some sites. Layers above the last do not run.

    Contexts are padded on the right: attention is causal, so no real position ever sees the padding.

    Args:
        model: The base model, or a replacement model.
        places: Where to look.
        tokens_bw: (B, W) int64 token ids; any token of the vocabulary serves as padding.
        wanted_bw: (B, W) bool, the positions that count.
        look: Called as the pass reaches each place, with the vectors (X, D) of the wanted positions, in the model's dtype.
    """
    places = list(dict.fromkeys(places))
    places_x = wanted_bw.flatten().nonzero().flatten()

    def looking(place: Place) -> Change:
        def show(site_bwd: Tensor) -> None:
            look(place, site_bwd.flatten(0, 1)[places_x.to(site_bwd.device)].to(model.device))

        return show

    layers = model.sites.layers
    last = max((layer for layer, _ in places), default=-1)
    hooks = [(layers[layer].module(site), site.is_input, looking((layer, site))) for layer, site in places]
    above = [layer.whole for layer in layers[last + 1 :]]
    with without_probabilities(model.sites.text_model), changed(hooks), passed_over(above):
        model.sites.run(model.sites.embed(tokens_bw))


def stream_dictionaries(
    model: LoadedModel,
    dictionaries: Sequence[DictionaryInUse],
    tokens_bw: Tensor,
    wanted_bw: Tensor,
    sink: Callable[[int, int, Tensor, Features], None],
) -> None:
    """Run a batch of contexts through the model once, and encode what each dictionary reads as the pass reaches it.

    Args:
        model: The base model, or a replacement model.
        dictionaries: Any of them, in use.
        tokens_bw: As for `stream_sites`.
        wanted_bw: As for `stream_sites`.
        sink: Called for every layer of each dictionary as `sink(number, layer, input_xd, features)`: which dictionary it
            is, the layer, its inputs (X, D), of several layers side by side where it reads several, and the active
            features, whose positions count the wanted ones.
    """
    readers: dict[Place, list[tuple[int, int]]] = {}
    for number, dictionary in enumerate(dictionaries):
        for layer in dictionary.layers:
            for read in dictionary.reader.read_layers(layer):
                readers.setdefault((read, dictionary.reads), []).append((number, layer))
    waiting: dict[tuple[int, int], list[Tensor]] = {}

    def look(place: Place, site_xd: Tensor) -> None:
        for number, layer in readers[place]:
            dictionary = dictionaries[number]
            inputs = waiting.setdefault((number, layer), [])
            inputs.append(site_xd.to(dictionary.device))
            if len(inputs) == len(dictionary.reader.read_layers(layer)):
                del waiting[number, layer]
                input_xd = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
                sink(number, layer, input_xd, dictionary.encode(layer, input_xd, 0))

    stream_sites(model, list(readers), tokens_bw, wanted_bw, look)


def stream_features(
    model: LoadedModel, tokens_bw: Tensor, wanted_bw: Tensor, sink: Sink, dictionary: DictionaryInUse | None = None
) -> None:
    """Run a batch of contexts through the original model and pass on the active features, layer by layer.

    What a dictionary reads at each layer is encoded and dropped during the pass, so that memory holds one layer's at a time.

    Args:
        model: The replacement model, or a base model.
        tokens_bw: (B, W) int64 token ids; any token of the vocabulary serves as padding.
        wanted_bw: (B, W) bool, the positions whose features count: real ones after the excluded first positions.
        sink: Called for every layer in turn as `sink(layer, places_n, features_n, values_n)`: (n,) int64 places in the
            flattened (B * W), (n,) int64 features within the layer, (n,) float32 activations; ascending by
            (feature, place).
        dictionary: Whose features; None for the replacement model's transcoders.

    Raises:
        ValueError: The model has no transcoders, and no dictionary is named.

    Example:
        >>> def count(layer, places_n, features_n, values_n):
        ...     print(f"layer {layer}: {len(features_n)} active features")
        >>> stream_features(model, tokens_bw, wanted_bw, count)
    """
    used = dictionary_of(model, dictionary)
    places_x = wanted_bw.flatten().nonzero().flatten().to(used.device)

    def take(_number: int, layer: int, _input_xd: Tensor, features: Features) -> None:
        positions_n, features_n, values_n = features
        order_n = torch.argsort(features_n, stable=True)  # positions ascend within each feature
        sink(layer, places_x[positions_n[order_n]], features_n[order_n], values_n[order_n])

    stream_dictionaries(model, [used], tokens_bw, wanted_bw, take)
