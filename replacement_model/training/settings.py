"""What a training run does: one flat record, as a recipe file holds it.

A recipe is a TOML file of keys and values, or the `training.json` that an earlier run left, whose `settings` are the same
keys. A table named after a kind (`[clt]`) holds what differs for it. Keys that a recipe does not name have the values of
the recipe `laptop`, so that every number is written down in a recipe file and nowhere else.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

Kind = Literal["transcoders", "clt", "sae"]
Site = Literal["resid_post", "mlp_out", "attn_out"]
Activation = Literal["quantile-jumprelu", "ste-jumprelu", "batch-topk"]

RECIPES = ("laptop", "gemma-scope-2", "anthropic-2025", "batch-topk")
DEFAULT_RECIPE = "laptop"
# Of runs that an earlier version recorded: what they did before a key came, and a key that went because it did nothing.
_BEFORE = {"buffer_passes": 1}
_GONE = ("clip",)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that decides what a run trains, and how.

    Shares are of the main stage, from 0 to 1. An optional key is None where a recipe does not name it.

    Attributes:
        kind: `transcoders` (one for each layer), `clt` (cross-layer) or `sae`.
        site: What SAEs read and write; transcoders read the MLP's input and write its output.
        layers: The layers of SAEs and per-layer transcoders; None takes all. A CLT always has all.
        skip: Whether transcoders have an affine skip connection.
        features: F, the features of each layer.
        l0: The target of active features for each token and layer.
        l0_start: The target at the beginning; None starts at `l0`.
        l0_anneal_share: When the target reaches `l0`, as a share.
        activation: How features become sparse.
        quantile_rate: How far a layer's running quantile goes towards a batch's, `quantile-jumprelu` and `batch-topk`.
        bandwidth: Width of the straight-through estimator's window, `ste-jumprelu`.
        threshold_start: The thresholds at the beginning, and after a reset, `ste-jumprelu`.
        ste_reaches: Whether its gradient goes to the `threshold` alone or through the pre-activations to `all` weights.
        l0_loss: The sparsity penalty of `ste-jumprelu`: `quadratic` in L0 / target - 1, `tanh` of value times decoder
            norm, or `none`.
        l0_coefficient: Its weight.
        l0_warmup_share: The share over which its weight grows linearly from 0.
        tanh_scale: The scale inside the tanh penalty.
        frequency_coefficient: Weight of the penalty on features that are active too often.
        frequency_limit: The share of tokens from which a feature is active too often.
        pre_activation_coefficient: Weight of the loss that pulls up features below their threshold.
        aux_coefficient: Weight of the loss that lets dead features reconstruct the error; 0 for none.
        aux_k: How many dead features do so for a token.
        matryoshka: Shares of the features, ascending: each prefix reconstructs alone; () for none.
        batch_tokens: B, tokens of a step.
        chunk_positions: Neighbouring positions that stay together in the shuffle buffer.
        tokens: Tokens of the main stage, or None where the clock decides.
        minutes: The whole run's length by the clock, all stages, or None where the tokens decide.
        buffer_tokens: Tokens that the shuffle buffer holds, where memory allows.
        buffer_passes: How often the buffer's tokens are trained on before it is filled anew, each time in another order,
            where the clock decides; where the tokens decide, once.
        learning_rate: Adam's learning rate after warm-up.
        adam_beta1: Adam's decay of the first moment.
        adam_beta2: Adam's decay of the second moment.
        adam_epsilon: What Adam adds to the root of the second moment.
        warmup_steps: Steps over which the learning rate grows linearly from 0.
        decay_share: The last share, over which the learning rate falls linearly.
        decay_floor: The least share of the learning rate.
        moments: The dtype of Adam's moments.
        normalisation_exponent: Inputs and outputs are centred and divided, per dimension, by this power of their standard
            deviation, then scaled to unit mean square.
        start: `data` starts encoders at data points, `far-apart` at data points far from one another (k-means++),
            `uniform` at random.
        start_data_share: The share of a data point in an encoder row, where it starts at one.
        start_noise: The share of noise in it.
        start_margin: The share of its value at its point by which a bias starts below 0: the nearer to 1, the nearer to
            its point a feature is active.
        start_decoder_scale: How much of what it should write a decoder writes at the start.
        start_own_layer: The part of that which is written to a feature's own layer.
        start_later_layers: The part of that which is written to each later layer of a CLT.
        dead_after_tokens: A feature is dead when it was not active for this many tokens.
        reset_every_steps: Steps between resets of dead features; 0 for none.
        resets_per_step: Most features that are reset in a layer at a time.
        reset_until_share: The share after which none is reset.
        reset_decoder_scale: As `start_decoder_scale`, of a batch's error, after a reset.
        initialise_from: A folder of per-layer transcoders from which a CLT starts, or None.
        end_to_end_share: The last share of `minutes` in which features are fine-tuned end to end; there is no such stage for
            SAEs, nor for transcoders of some layers alone.
        end_to_end_tokens: Tokens of that stage where the tokens decide.
        end_to_end_windows: Windows of a step of it.
        end_to_end_window_tokens: Tokens of such a window; fewer where the model takes fewer.
        end_to_end_learning_rate: Its learning rate.
        end_to_end_clip: Its greatest norm of a step's gradient; 0 does not clip.
        end_to_end_logit_tokens: Tokens of such a step whose next-token distributions are compared, drawn at random; 0
            compares final hidden states instead.
        end_to_end_residual_weight: Weight of the residual stream's errors beside that.
        context_tokens: Tokens of a window that the base model reads, `<bos>` included; fewer where it takes fewer.
        statistics_tokens: Tokens from which means and scales are taken, and data points of the start.
        held_out_share: The share of documents that are not trained on.
        checkpoint_minutes: Minutes between checkpoints.
        seed: The seed of everything random.
    """

    kind: Kind
    site: Site
    layers: tuple[int, ...] | None = None
    skip: bool
    features: int
    l0: float
    l0_start: float | None = None
    l0_anneal_share: float

    activation: Activation
    quantile_rate: float
    bandwidth: float
    threshold_start: float
    ste_reaches: Literal["threshold", "all"]
    l0_loss: Literal["quadratic", "tanh", "none"]
    l0_coefficient: float
    l0_warmup_share: float
    tanh_scale: float
    frequency_coefficient: float
    frequency_limit: float
    pre_activation_coefficient: float
    aux_coefficient: float
    aux_k: int
    matryoshka: tuple[float, ...]

    batch_tokens: int
    chunk_positions: int
    tokens: int | None = None
    minutes: float | None = None
    buffer_tokens: int
    buffer_passes: int

    learning_rate: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    warmup_steps: int
    decay_share: float
    decay_floor: float
    moments: Literal["float32", "bfloat16"]

    normalisation_exponent: float
    start: Literal["data", "far-apart", "uniform"]
    start_data_share: float
    start_noise: float
    start_margin: float
    start_decoder_scale: float
    start_own_layer: float
    start_later_layers: float
    dead_after_tokens: int
    reset_every_steps: int
    resets_per_step: int
    reset_until_share: float
    reset_decoder_scale: float
    initialise_from: str | None = None

    end_to_end_share: float
    end_to_end_tokens: int
    end_to_end_windows: int
    end_to_end_window_tokens: int
    end_to_end_learning_rate: float
    end_to_end_clip: float
    end_to_end_logit_tokens: int
    end_to_end_residual_weight: float

    context_tokens: int
    statistics_tokens: int
    held_out_share: float
    checkpoint_minutes: float
    seed: int

    def __post_init__(self) -> None:
        """Check types, ranges and contradictions.

        Raises:
            ValueError: A value has the wrong type or is out of range, or two contradict each other; the keys are named.
        """
        for key, hint in _hints().items():
            object.__setattr__(self, key, _checked(key, getattr(self, key), hint))
        _check_ranges(self)
        _check_together(self)

    @property
    def passes(self) -> int:
        """How often each token is trained on: as many tokens as were asked for are all different."""
        return self.buffer_passes if self.tokens is None else 1

    @property
    def end_to_end(self) -> bool:
        """Whether there is a stage that fine-tunes end to end: not for SAEs, nor for transcoders of some layers alone."""
        if self.kind == "sae" or self.layers is not None:
            return False
        return self.end_to_end_tokens > 0 if self.minutes is None else self.end_to_end_share > 0

    def changed(self, **changes: Any) -> Self:
        """Return the settings with some changed.

        Args:
            changes: Keys and their new values.

        Raises:
            ValueError: A key is unknown or a value does not fit.
        """
        _check_known(changes)
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return every key and its value, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def load_recipe(name_or_path: str | os.PathLike[str] = DEFAULT_RECIPE, **changes: Any) -> TrainingSettings:
    """Read a recipe.

    Args:
        name_or_path: The name of one that comes with crosstrace (`laptop`, `gemma-scope-2`, `anthropic-2025`,
            `batch-topk`), a TOML file, or the `training.json` of an earlier run.
        changes: Keys that replace the recipe's.

    Returns:
        The settings: the recipe's, and those of `laptop` where it says nothing.

    Raises:
        FileNotFoundError: There is no such recipe and no such file.
        ValueError: The file is not a recipe, names an unknown key, or a value does not fit; file and key are named.

    Example:
        >>> load_recipe("laptop", features=512).features
        512
    """
    base = _read(_packaged(DEFAULT_RECIPE))
    source = _packaged(str(name_or_path)) if str(name_or_path) in RECIPES else Path(name_or_path)
    try:
        values = _read(source)
        kind = changes.get("kind", values.get("kind", base["kind"]))
        common, own = _for_kind(values, kind)
        _check_known(common | own)
        merged = _length_replaced(*_for_kind(base, kind), common, own)
        settings = TrainingSettings(**(merged | {"kind": kind}))
    except ValueError as problem:
        raise ValueError(f"recipe {name_or_path}: {problem}") from None
    return settings.changed(**_length_replaced(changes)) if changes else settings


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the `settings` of a `training.json` under the keys of today, also where an earlier version wrote them."""
    return _BEFORE | {key: value for key, value in values.items() if key not in _GONE}


def _for_kind(values: dict[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a recipe into what holds for every kind and what is in the table of one."""
    common, own = dict(values), {}
    for name in get_args(Kind):
        table = common.pop(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"{name} = {table!r}: expected a table, [{name}]")
        if name == kind:
            own = table
    return common, own


def _length_replaced(*layers: dict[str, Any]) -> dict[str, Any]:
    """Put values over others, the last on top; a length in tokens or minutes replaces one in the other."""
    merged: dict[str, Any] = {}
    for values in layers:
        merged |= values
        if values.get("tokens") is not None and "minutes" not in values:
            merged["minutes"] = None
        if values.get("minutes") is not None and "tokens" not in values:
            merged["tokens"] = None
    return merged


def _packaged(name: str) -> Path:
    return Path(str(files(__package__))) / "recipes" / f"{name}.toml"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file, and not a recipe that comes with crosstrace"
        raise FileNotFoundError(f"recipe {path}: {what} ({', '.join(RECIPES)})")
    try:
        content = path.read_text("utf-8")
        if path.suffix == ".json":
            record = json.loads(content)
            settings = record.get("settings") if isinstance(record, dict) else None
            if not isinstance(settings, dict):
                raise ValueError("has no 'settings'; expected the training.json of a run")
            return recorded(settings)
        return tomllib.loads(content)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"is not {'JSON' if path.suffix == '.json' else 'TOML'}: {problem}") from None


def _hints() -> dict[str, Any]:
    return get_type_hints(TrainingSettings)


def _check_known(values: dict[str, Any]) -> None:
    known = {field.name for field in fields(TrainingSettings)}
    for key in values:
        if key not in known:
            near = [name for name in sorted(known) if key in name or name in key]
            raise ValueError(f"unknown key {key!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


def _checked(key: str, value: Any, hint: Any) -> Any:
    """Check a value against its type; lists become tuples, whole numbers floats."""
    if isinstance(hint, UnionType):
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{key} = {value!r}: expected one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{key} = {value!r}: expected a list")
        return tuple(_checked(key, item, get_args(hint)[0]) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"{key} = {value!r}: expected {names[hint]}")
    return value


_SHARES = (
    "l0_anneal_share",
    "l0_warmup_share",
    "frequency_limit",
    "decay_share",
    "decay_floor",
    "reset_until_share",
    "quantile_rate",
    "held_out_share",
    "end_to_end_share",
)
_ABOVE_ZERO = (
    "features",
    "l0",
    "l0_start",
    "bandwidth",
    "threshold_start",
    "batch_tokens",
    "chunk_positions",
    "tokens",
    "minutes",
    "buffer_tokens",
    "buffer_passes",
    "learning_rate",
    "adam_epsilon",
    "tanh_scale",
    "dead_after_tokens",
    "end_to_end_windows",
    "end_to_end_window_tokens",
    "end_to_end_learning_rate",
    "statistics_tokens",
)


def _check_ranges(settings: TrainingSettings) -> None:
    for key, value in asdict(settings).items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{key} = {value}: expected a finite number")
        if key in _ABOVE_ZERO and value <= 0:
            raise ValueError(f"{key} = {value}: expected a number above 0")
        if value < 0:
            raise ValueError(f"{key} = {value}: expected a number of at least 0")
        if key in _SHARES and value > 1:
            raise ValueError(f"{key} = {value}: expected a share between 0 and 1")
    for key in ("adam_beta1", "adam_beta2", "held_out_share", "end_to_end_share", "start_margin"):
        if getattr(settings, key) >= 1:
            raise ValueError(f"{key} = {getattr(settings, key)}: expected a number below 1")
    if settings.context_tokens < 2:
        raise ValueError(f"context_tokens = {settings.context_tokens}: expected at least 2, <bos> included")


def _check_together(settings: TrainingSettings) -> None:
    """Check values against each other."""
    s = settings
    if (s.tokens is None) == (s.minutes is None):
        both = "both are given" if s.tokens is not None else "neither is given"
        raise ValueError(f"tokens and minutes: {both}; expected one, it is the length of the run")
    for key, value in (("l0", s.l0), ("l0_start", s.l0_start)):
        if value is not None and value > s.features:
            raise ValueError(f"{key} = {value:g} contradicts features = {s.features}: more than there are")
    if any(not 0 < share <= 1 for share in s.matryoshka) or list(s.matryoshka) != sorted(set(s.matryoshka)):
        raise ValueError(f"matryoshka = {list(s.matryoshka)}: expected ascending shares above 0 and up to 1")
    if s.matryoshka and s.matryoshka[-1] != 1:
        raise ValueError(f"matryoshka = {list(s.matryoshka)}: the last prefix is all features, expected 1")
    if s.batch_tokens % s.chunk_positions:
        raise ValueError(
            f"batch_tokens = {s.batch_tokens} contradicts chunk_positions = {s.chunk_positions}: not a multiple of it"
        )
    if s.buffer_tokens < s.batch_tokens:
        raise ValueError(
            f"buffer_tokens = {s.buffer_tokens} contradicts batch_tokens = {s.batch_tokens}: less than a batch"
        )
    if s.chunk_positions >= s.context_tokens:
        raise ValueError(
            f"chunk_positions = {s.chunk_positions} contradicts context_tokens = {s.context_tokens}: too long for a window"
        )
    if s.layers is not None:
        if s.kind == "clt":
            raise ValueError("layers contradicts kind = 'clt': a cross-layer transcoder has all layers")
        if not s.layers or list(s.layers) != sorted(set(s.layers)) or s.layers[0] < 0:
            raise ValueError(f"layers = {list(s.layers)}: expected ascending layer numbers")
    if s.kind == "sae" and s.skip:
        raise ValueError("skip = true contradicts kind = 'sae': only transcoders have a skip connection")
    if s.initialise_from is not None and s.kind != "clt":
        raise ValueError(f"initialise_from contradicts kind = {s.kind!r}: a CLT starts from per-layer transcoders")
    if s.activation == "ste-jumprelu" and s.l0_loss == "none":
        raise ValueError("l0_loss = 'none' contradicts activation = 'ste-jumprelu': nothing would make it sparse")
