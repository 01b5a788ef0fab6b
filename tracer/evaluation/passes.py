"""The runs that a dictionary is judged by: the model as it is, with reconstructions spliced in, and with the site zeroed.

Only counted positions are touched; the others (the excluded first ones, and padding) keep what the model has there.

Letters: B contexts of a batch, W positions of the longest, X counted positions of the batch, L layers, D the width of a
site or of the residual stream, J layers a feature writes to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from crosstrace.replacement_model import ModelSites, Site
from crosstrace.replacement_model.architectures.hooks import Change, changed
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features

Place = tuple[nn.Module, bool, Change]
Observe = Callable[[int, Tensor, Tensor, Features], None]
"""Given a layer, what the model has at the site (X, D), its reconstruction (X, D) and the active features."""


class Reconstruction:
    """What a dictionary makes of the inputs of one pass, which come layer by layer."""

    def __init__(self, dictionary: DictionaryInUse, n_tokens: int) -> None:
        self.dictionary, self.n_tokens = dictionary, n_tokens
        self._features: dict[int, Features] = {}
        self._inputs: dict[int, Tensor] = {}
        self._sums: Tensor | None = None

    def read(self, depth: int, input_xd: Tensor) -> None:
        """Take a depth's inputs (X, D); where they are the last that a layer reads, encode them and add up what it writes."""
        dictionary, self._inputs[depth] = self.dictionary, input_xd
        if depth not in dictionary.n_features:
            return  # a depth at which the latents of an acausal crosscoder are not known yet
        read = [self._inputs[one] for one in dictionary.reader.read_layers(depth)]
        features = dictionary.encode(depth, read[0] if len(read) == 1 else torch.cat(read, 1), 0)
        self._features[depth] = features
        written = dictionary.reader.written_layers(depth)
        # Lower layers of a cross-layer transcoder have written to this one already.
        if self._sums is None or not dictionary.cross_layer:
            n_depths = len(dictionary.depths) if dictionary.cross_layer else 1
            self._sums = torch.zeros(n_depths, self.n_tokens, dictionary.d_model, device=dictionary.device)
        first = dictionary.depths.index(written[0]) if dictionary.cross_layer else 0
        dictionary.add_decoded(depth, features, self._sums[first : first + len(written)])

    def known_at(self, layer: int) -> Sequence[int]:
        """Return the depths whose reconstruction is complete when a layer with features of its own has been read."""
        reads = self.dictionary.reader.read_layers(layer)
        return reads if len(reads) > 1 else (layer,)

    def take(self, layer: int, depth: int) -> tuple[Tensor, Tensor, Features]:
        """Return a depth's inputs (X, D), its reconstruction (X, D) float32, and the features that fire in the layer."""
        assert self._sums is not None
        dictionary, input_xd = self.dictionary, self._inputs.pop(depth)
        sum_xd = self._sums[dictionary.depths.index(depth) if dictionary.cross_layer else 0]
        return input_xd, dictionary.reconstruction(depth, sum_xd, input_xd), self._features[layer]


class Batch:
    """The runs of some contexts.

    Attributes:
        n_tokens: X, the number of counted positions.
    """

    def __init__(self, sites: ModelSites, dictionary: DictionaryInUse, tokens_bw: Tensor, counted_bw: Tensor) -> None:
        """Take the contexts.

        Args:
            sites: The live modules of the model.
            dictionary: The dictionary.
            tokens_bw: (B, W) int64 token ids, padded on the right with any token: attention is causal.
            counted_bw: (B, W) bool, the positions that count.
        """
        self.sites, self.dictionary = sites, dictionary
        self._width = tokens_bw.shape[1]
        self._places_x = counted_bw.flatten().nonzero().flatten()
        self.n_tokens = len(self._places_x)
        self._embedded_bwd = sites.embed(tokens_bw)
        self._residuals: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}
        self._alone_rows = self._alone_tokens = 0

    def model(self, observe: Observe, alone_rows: int = 0) -> Tensor:
        """Run the model as it is; return the final norm's output (B, W, D).

        Args:
            observe: Called for each depth of the dictionary.
            alone_rows: Keep what `alone` needs of this many first contexts.
        """
        self._alone_rows = alone_rows
        self._alone_tokens = int((self._places_x < alone_rows * self._width).sum())
        reconstruction = Reconstruction(self.dictionary, self.n_tokens)

        def look(layer: int, site_bwd: Tensor) -> None:
            for depth in reconstruction.known_at(layer):
                input_xd, made_xd, features = reconstruction.take(layer, depth)
                # What is known later is a crosscoder's, which writes what it reads.
                observe(depth, self._counted(site_bwd) if depth == layer else input_xd, made_xd, features)
                if alone_rows:
                    self._kept[depth] = made_xd[: self._alone_tokens].clone()

        places = self._reading(reconstruction) + self._writing(look)
        if alone_rows:
            places += [
                (self.sites.layers[layer - 1].whole, False, self._keeper(layer))
                for layer in self.dictionary.depths
                if layer
            ]
            self._residuals[0] = self._embedded_bwd[:alone_rows]
        return self._run(places)

    def replaced(self) -> Tensor:
        """Run the model with the reconstruction in place of the site at every layer of the dictionary.

        Features are those that fire in this run. Of an acausal crosscoder the deepest reconstruction takes the residual
        stream's place, and with it that of all before. Returns the final norm's output (B, W, D).
        """
        reconstruction = Reconstruction(self.dictionary, self.n_tokens)
        return self._run(
            self._reading(reconstruction)
            + self._writing(lambda layer, site_bwd: self._spliced(site_bwd, reconstruction.take(layer, layer)[1]))
        )

    def zeroed(self) -> Tensor:
        """Run the model with zeros in place of the site at every layer of the dictionary; as `replaced`."""
        zeros_xd = torch.zeros(self.n_tokens, self.dictionary.d_model)
        return self._run(self._writing(lambda layer, site_bwd: self._spliced(site_bwd, zeros_xd)))

    def alone(self, layer: int) -> Tensor:
        """Run the first contexts with the reconstruction in place of one layer's site alone.

        The reconstruction is that of the model as it is, to which lower layers of a cross-layer transcoder add what their
        features write. The run starts below the layer, with the residual stream that entered it. Returns the final norm's
        output (rows, W, D).
        """
        made_xd, residual_bwd = self._kept.pop(layer), self._residuals.pop(layer)
        places = self._writing(lambda layer, site_bwd: self._spliced(site_bwd, made_xd), [layer])
        with changed(places):
            return self.sites.run(residual_bwd, first_layer=layer)

    def _run(self, places: Sequence[Place]) -> Tensor:
        with changed(places):
            return self.sites.run(self._embedded_bwd)

    def _reading(self, reconstruction: Reconstruction) -> list[Place]:
        return self._at(
            self.dictionary.reads,
            lambda layer, site_bwd: reconstruction.read(layer, self._counted(site_bwd)),
            sorted({read for layer in self.dictionary.layers for read in self.dictionary.reader.read_layers(layer)}),
        )

    def _writing(
        self, change: Callable[[int, Tensor], Tensor | None], layers: Sequence[int] | None = None
    ) -> list[Place]:
        return self._at(self.dictionary.writes, change, self.dictionary.layers if layers is None else layers)

    def _at(self, site: Site, change: Callable[[int, Tensor], Tensor | None], layers: Sequence[int]) -> list[Place]:
        def of_layer(layer: int) -> Change:
            return lambda site_bwd: change(layer, site_bwd)

        return [(self.sites.layers[layer].module(site), site.is_input, of_layer(layer)) for layer in layers]

    def _keeper(self, layer: int) -> Change:
        def keep(residual_bwd: Tensor) -> None:
            self._residuals[layer] = residual_bwd[: self._alone_rows]

        return keep

    def _counted(self, site_bwd: Tensor) -> Tensor:
        return site_bwd.flatten(0, 1)[self._places_x.to(site_bwd.device)].to(self.dictionary.device)

    def _spliced(self, site_bwd: Tensor, new_xd: Tensor) -> Tensor:
        spliced_yd = site_bwd.flatten(0, 1).clone()
        spliced_yd[self._places_x[: len(new_xd)].to(site_bwd.device)] = new_xd.to(site_bwd)
        return spliced_yd.view_as(site_bwd)
