"""The replacement model: a base model with every MLP replaced by transcoders.

Implements Ameisen et al. 2025, "Circuit Tracing", section "From Cross-Layer Transcoder to Replacement Model".

Letters: L layers, P positions, D d_model, H heads, V vocabulary, N active features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model import prompts
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.float64 import float64_arithmetic
from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.base_model import LoadedModel
from crosstrace.replacement_model.conversations import Conversation, Message, conversation_of
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.dictionaries.readers import open_transcoders
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.embedded import embedded_model
from crosstrace.replacement_model.interventions.freeze import Errors, Freeze
from crosstrace.replacement_model.interventions.generation import Generation, generate
from crosstrace.replacement_model.interventions.kinds import Intervention
from crosstrace.replacement_model.interventions.outcomes import Outcome
from crosstrace.replacement_model.interventions.running import intervene
from crosstrace.replacement_model.local.capture import Capture
from crosstrace.replacement_model.local.frozen import keeps_attention_on_host
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.local.record import PassRecord
from crosstrace.replacement_model.local.running_model import Localize
from crosstrace.replacement_model.memory import parse_bytes, usable_bytes
from crosstrace.replacement_model.prompts import Prompt

# Two float32 passes differ by about 8e-7 of an MLP's output, which is this much more of errors that are a small part of it:
# below this share, error edges would not be good to 1e-5.
_SMALL_ERRORS = 0.1


@dataclass(frozen=True)
class ReplacementOutput:
    """The result of a forward pass of the replacement model.

    Attributes:
        logits_v: (V,) float32 logits at the last position.
        activations: The features that fired on the way.
    """

    logits_v: Tensor
    activations: SparseActivations


class ReplacementModel:
    """A base model together with transcoders for its MLPs.

    Attributes:
        model: The base model, as `transformers` loaded it.
        sites: The live modules of the base model.
        transcoders: The transcoders in use.
        tokenizer: The tokenizer of `transformers`, or None.
        name: What the user called the model.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, transcoders: Transcoders, description: ModelDescription, name: str
    ) -> None:
        """Put a loaded model and transcoders together; `from_pretrained` loads both.

        Args:
            model: The base model, with eager attention.
            tokenizer: The tokenizer of `transformers`, or None.
            transcoders: The transcoders.
            description: The description of the base model.
            name: What graphs and messages call the model.

        Raises:
            ValueError: Model and transcoders do not fit.
        """
        transcoders.check_fits(description, name)
        self.model, self.tokenizer, self.transcoders, self.name = model, tokenizer, transcoders, name
        self.sites = ModelSites(model, description)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        transcoders: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        excluded_first: int | None = None,
        memory_budget: int | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> ReplacementModel:
        """Load a model and its transcoders.

        Args:
            model: A folder, a `.gguf` file of Gemma 3, `org/name` on the hub, or `demo` or `demo-chat`, the embedded ones.
            transcoders: A folder, or `org/repo/sub/folder[@revision]` on the hub; see
                `crosstrace.replacement_model.open_transcoders`. None: an embedded model's own.
            device: Where tracing happens; None: a GPU if there is one.
            dtype: The dtype of all weights except biases and thresholds, which are float32; None: as stored. Arithmetic
                is float32 whatever the weights are.
            excluded_first: How many first positions carry no features; None: as the architecture says (Gemma 3: `<bos>`
                alone; in a prompt that begins as the tokenizer's chat template does, the header of the first turn).
            memory_budget: Bytes, or text such as `"8GB"`, for transcoder weights and rows in addition to the model's own
                weights; see `crosstrace.replacement_model.dictionaries.transcoders`. None: 80 % of what is free on the
                device.
            device_map: The devices of the model's layers, as `transformers` and accelerate take them (`"auto"`, or a
                mapping); needs accelerate. Tracing itself happens on `device`.
            chat_template: A chat template (Jinja) in place of the tokenizer's own, or where it has none.

        Raises:
            ValueError: The architecture is not supported, files are damaged, model and transcoders do not fit, no
                transcoders are named for a model that has none of its own, or a setting is not valid.
            OSError: Something is missing or cannot be reached.

        Example:
            >>> from crosstrace.replacement_model import ReplacementModel, demo
            >>> model = ReplacementModel.from_pretrained("demo")
            >>> local = model.local(demo.DALLAS_PROMPT)
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        own = embedded_model(model)
        if transcoders is None and own is None:
            raise ValueError(f"no transcoders are named for model {model}; only embedded models have their own")
        # The transcoders first: a wrong path should not cost the wait for a large model.
        reader = open_transcoders(own.transcoders if own and transcoders is None else str(transcoders))
        if own and transcoders is None:
            reader.name = own.transcoders_name
        if memory_budget is not None:
            parse_bytes(memory_budget)
        module, tokenizer, description = load_model(
            str(own.folder if own else model), dtype, place, device_map, chat_template
        )
        if excluded_first is not None:
            description = description.excluding(excluded_first)
        return cls(
            module,
            tokenizer,
            Transcoders(reader, place, dtype, memory_budget),
            description,
            own.name if own else str(model),
        )

    @classmethod
    def demo(
        cls,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        excluded_first: int | None = None,
        memory_budget: int | str | None = None,
        device_map: str | dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> ReplacementModel:
        """Load the embedded demo: a small Gemma 3 that knows US states and countries, with its cross-layer transcoder.

        Args:
            device: As for `from_pretrained`, like all that follow.
            dtype: The dtype of all weights except biases and thresholds; None: as stored.
            excluded_first: How many first positions carry no features; None: 1.
            memory_budget: Bytes, or text such as `"8GB"`.
            device_map: The devices of the model's layers.
            chat_template: A chat template; it has none of its own.

        Raises:
            ValueError: A setting is not valid.

        Example:
            >>> ReplacementModel.demo().description.n_layers
            6
        """
        return cls.from_pretrained(
            "demo", None, device, dtype, excluded_first, memory_budget, device_map, chat_template
        )

    @property
    def description(self) -> ModelDescription:
        """The sizes and conventions of the base model."""
        return self.sites.description

    def excluding(self, first: int) -> ReplacementModel:
        """Return the same model with another number of excluded first positions in every prompt; weights are shared.

        Raises:
            ValueError: The number is negative.
        """
        model = copy.copy(self)
        model.sites = self.sites.excluding(first)
        return model

    @property
    def device(self) -> torch.device:
        """Where tracing happens: the device of the transcoders, and of the model unless a device map spreads it."""
        return self.transcoders.device

    @property
    def weights_dtype(self) -> str:
        """The dtype of the model's weights in use, as graphs keep it: `float32`, `bfloat16` or `float16`."""
        return str(self.sites.unembedding.dtype).removeprefix("torch.")

    def tokenize(self, prompt: Prompt) -> Tensor:
        """Return the token ids (P,) int64 of a prompt.

        Args:
            prompt: A text, which gets `<bos>` unless it starts with it, or token ids, which are taken as they are: a list,
                a tensor (P,) or (1, P), a NumPy array, or what `tokenizer.apply_chat_template` returns.

        Raises:
            ValueError: The prompt is empty, longer than the model's context, padded, or a batch of several; ids are out of
                range or not integers; or a text is given to a model without a tokenizer.

        Example:
            >>> ReplacementModel.demo().tokenize("Dallas is").shape
            torch.Size([3])
        """
        size = self.description
        return prompts.prompt_ids(prompt, self.tokenizer, self.name, size.vocab_size, size.max_positions)

    def conversation(self, messages: Sequence[Message], answer: str | None = None) -> Conversation:
        """Return a conversation as the tokenizer's chat template writes it, up to where the assistant is to speak.

        Args:
            messages: In order, each with its `role` (`system`, `user`, `assistant`) and `content`. If the last one is the
                assistant's, it is the answer.
            answer: What the assistant says then, whether or not the model would; taken as it is.

        Returns:
            The token ids, a prompt like any other, with the span of each turn and of the answer; see `Conversation`.

        Raises:
            ValueError: There is no chat template, it refuses the messages, a message or the answer is empty or no message,
                or all of it is longer than the model's context.

        Example:
            >>> conversation = model.conversation([{"role": "user", "content": "Where is Dallas?"}], "In Texas")
            >>> graph = trace(model, conversation)  # of every token of the answer
        """
        return conversation_of(messages, answer, self.tokenizer, self.name, self.description.max_positions)

    def prompt_notes(self, prompt: Prompt) -> list[str]:
        """Return what a prompt holds that is probably not meant, one line each.

        That is `<bos>` in a place other than the first, special tokens twice in a row, tokens that end or pad a text in
        the middle of it, text that is spelled nearly like a special token, and escapes such as a backslash with n.

        Args:
            prompt: A text or token ids.

        Raises:
            ValueError: The prompt cannot be used; see `tokenize`.

        Example:
            >>> ReplacementModel.demo().prompt_notes("<bos><bos>Dallas is")
            ['<bos> stands at position 1 too; the model expects it once, at the beginning']
        """
        return prompts.prompt_notes(prompt, self.tokenize(prompt).tolist(), self.tokenizer)

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the parts of a text that the tokenizer has no token for, each once.

        There are none where every byte has a token, as in Gemma's own tokenizer.

        Raises:
            ValueError: The prompt is not valid text.
        """
        return prompts.unknown_words(prompt, self.tokenizer)

    def close_tokens(self, text: str, n: int = 3) -> list[str]:
        """Return up to `n` tokens of the vocabulary with nearly the spelling of a text, closest first; case is ignored."""
        return prompts.close_tokens(text, self.tokenizer, n)

    def token_strings(self, tokens_p: Tensor) -> list[str]:
        """Return each token as text, on its own.

        Byte tokens are written `<0x0A>`, so that each has a text of its own; the tokens of a model without a tokenizer are
        written `<id>`.
        """
        return prompts.token_strings(tokens_p.tolist(), self.tokenizer)

    def local(self, prompt: Prompt) -> LocalReplacementModel:
        """Run a prompt through the original model and freeze its local replacement model.

        The pass is in float32, and errors are what it leaves of the MLP outputs. Where transcoders leave so little in any
        layer that rounding would show in it, the pass is repeated in float64.

        Raises:
            ValueError: The prompt cannot be used; see `tokenize`.

        Example:
            >>> local = ReplacementModel.demo().local("The capital of the state containing Dallas is")
            >>> local.errors_lpd.shape == (6, local.n_positions, local.description.d_model)
            True
        """
        tokens_p = self.tokenize(prompt)
        record, least_share = self._record(tokens_p, torch.float32)
        if least_share < _SMALL_ERRORS and self.device.type != "mps":  # which has no float64
            with float64_arithmetic():
                record, _ = self._record(tokens_p, torch.float64)
        return LocalReplacementModel(record, self.transcoders, self.sites, self._budget())

    def _record(self, tokens_p: Tensor, dtype: torch.dtype) -> tuple[PassRecord, float]:
        """Run a prompt through the original model.

        Args:
            tokens_p: (P,) the prompt.
            dtype: The dtype of the pass and of the subtraction that leaves the errors; what is kept is float32.

        Returns:
            The record, and the smallest share of a layer's MLP output that errors are, by their norms.
        """
        description, n_positions = self.description.for_prompt(tokens_p.tolist()), len(tokens_p)
        first = description.excluded_first
        features, exact, errors, norms = [], [], [], []

        def read(layer: int, input_pd: Tensor, output_pd: Tensor) -> None:
            # As the pass reaches it: one encoder and one input are held at a time.
            rounded_pd = input_pd.to(torch.float32)
            positions, numbers, values = self.transcoders.encode(layer, rounded_pd, first)
            if dtype == torch.float64:
                exact.append(self.transcoders.pre_activations(layer, input_pd, positions, numbers))
                values = exact[-1].to(torch.float32)
            features.append((positions, numbers, values))
            errors.append(output_pd - self.transcoders.affine(layer, input_pd))
            norms.append(output_pd[first:].norm())

        capture = Capture(self.sites, self.transcoders, read, self._attention_store(n_positions))
        with hooked(capture.hooks()):
            self.sites.run(self.sites.embed(tokens_p)[None].to(dtype))
        activations = SparseActivations.from_layers(features, n_positions)
        active_rows = self.transcoders.decoder_rows_of(activations)
        errors_lpd = torch.stack(errors)
        errors.clear()
        if dtype == torch.float64:
            active_rows.subtract(activations, torch.cat(exact), errors_lpd)
        else:
            errors_lpd -= active_rows.decode(activations)
        errors_lpd = errors_lpd.to(torch.float32)
        biases = [self.transcoders.bias(layer) for layer in range(self.description.n_layers)]
        constants_lpd = torch.stack(biases)[:, None].repeat(1, n_positions, 1)
        constants_lpd[:, :first] += errors_lpd[:, :first]  # no features there: what is left is the MLP's own output
        errors_lpd[:, :first] = 0
        record = PassRecord(
            description=description,
            tokens_p=tokens_p,
            layers=capture.layers,
            activations=activations,
            active_rows=active_rows,
            errors_lpd=errors_lpd,
            constants_lpd=constants_lpd,
            residuals_lpd=torch.stack(capture.residuals),
            mids_lpd=torch.stack(capture.mids),
            final_norm=capture.final_norm,
        )
        share_l = errors_lpd.flatten(1).norm(dim=1) / torch.stack(norms).to(torch.float32)
        return record, share_l[share_l.isfinite()].amin().item() if share_l.isfinite().any() else 1.0

    def localizer(self) -> Localize:
        """Return a function that gives the local replacement model of a prompt and runs each prompt only once.

        The function returns a local replacement model that it is given as it is, and raises `ValueError` for one of
        another model.

        Example:
            >>> localize = ReplacementModel.demo().localizer()
            >>> localize("Dallas is") is localize("Dallas is")
            True
        """
        known: dict[tuple[int, ...], LocalReplacementModel] = {}

        def localize(prompt: Prompt | LocalReplacementModel) -> LocalReplacementModel:
            if isinstance(prompt, LocalReplacementModel):
                self._check_own(prompt)
                return prompt
            tokens_p = self.tokenize(prompt)
            key = tuple(tokens_p.tolist())
            if key not in known:
                known[key] = self.local(tokens_p)
            return known[key]

        return localize

    def _check_own(self, local: LocalReplacementModel) -> None:
        if local.sites.text_model is not self.sites.text_model or local.transcoders is not self.transcoders:
            raise ValueError(
                f"this local replacement model was not made by this replacement model ({self.name} with "
                f"{self.transcoders.name}); make it with local() of the model that runs it, or give the prompt"
            )
        ours = self.description.excluded_first_of(local.tokens_p.tolist())
        theirs = local.description.excluded_first
        if ours != theirs:
            raise ValueError(
                f"this local replacement model excludes the first {theirs} positions and the model that runs it {ours}; "
                "make it with local() of that model, or give the prompt"
            )

    def _budget(self) -> int:
        return self.transcoders.memory_budget or usable_bytes(self.device)

    def _attention_store(self, n_positions: int) -> Callable[[Tensor], Tensor]:
        """What moves a layer's attention to where it is kept."""
        if keeps_attention_on_host(self.description, n_positions, self.device, self._budget()):
            return lambda block: block.cpu()
        return lambda block: block

    def forward(self, prompt: Prompt, errors_lpd: Tensor | None = None) -> ReplacementOutput:
        """Run a prompt with every MLP output replaced by its reconstruction.

        Excluded first positions keep the MLP's own output.

        Args:
            prompt: A text or token ids.
            errors_lpd: (L, P, D) float32 added to the reconstructions, as from `local`: the prompt's own errors give the
                original model back, up to rounding. None: no errors.

        Returns:
            The logits at the last position, and the features that fired.

        Raises:
            ValueError: The prompt cannot be used, or the errors have another shape.
        """
        tokens_p = self.tokenize(prompt)
        shape = (self.description.n_layers, len(tokens_p), self.description.d_model)
        if errors_lpd is not None and errors_lpd.shape != shape:
            raise ValueError(f"errors_lpd has shape {tuple(errors_lpd.shape)}; expected {shape}")
        written_lpd = torch.zeros(shape, device=self.device) if errors_lpd is None else errors_lpd.float().clone()
        first = self.description.excluded_first_of(tokens_p.tolist())
        features: list[tuple[Tensor, Tensor, Tensor]] = []

        def swap(layer: int, input_pd: Tensor, output_pd: Tensor) -> Tensor:
            features.append(self.transcoders.encode(layer, input_pd, first))
            self.transcoders.write(layer, features[-1], written_lpd)
            swapped_pd = written_lpd[layer] + self.transcoders.affine(layer, input_pd)
            swapped_pd[:first] = output_pd[:first]
            return swapped_pd

        capture = Capture(self.sites, self.transcoders, swap)
        with hooked(capture.hooks()):
            normed_pd = self.sites.run(self.sites.embed(tokens_p)[None])[0]
        activations = SparseActivations.from_layers(features, len(tokens_p))
        return ReplacementOutput(self.sites.unembed(normed_pd[-1]), activations)

    def intervene(
        self,
        prompt: Prompt | LocalReplacementModel,
        interventions: Sequence[Intervention],
        freeze: Freeze | str = "iterative",
        errors: Errors | Tensor = "frozen",
        positions: Sequence[int] = (-1,),
        read_features: Tensor | None = None,
    ) -> Outcome:
        """Run one prompt under interventions; `crosstrace.replacement_model.intervene_batch` runs many in one pass.

        Args:
            prompt: A text, token ids, or the prompt's local replacement model.
            interventions: What to change; an empty list gives the unchanged model.
            freeze: What is held at the prompt's own values: `"direct"`, `"constrained:LAYER"`, `"iterative"`, or a
                `Freeze` with more choices.
            errors: What becomes of the part of the MLP outputs that transcoders miss: `"frozen"`, `"recomputed"`,
                `"dropped"`, or vectors (L, P, D) float32 to replace them.
            positions: Positions whose logits are returned; negative ones count from the prompt's end.
            read_features: (T, 3) int64 rows (layer, position, feature) whose pre-activations are returned.

        Returns:
            The outcome, with logits at the requested positions and pre-activations of the requested features.

        Raises:
            ValueError: The prompt, an intervention, a setting or a place to read is not valid, or interventions
                contradict each other; one line that names it.

        Example:
            >>> outcome = model.intervene("The capital of the state containing Dallas is", [Ablate("Texas")])
            >>> model.token_strings(outcome.logits_v.topk(3).indices)
        """
        return intervene(self, prompt, interventions, freeze, errors, positions, read_features)

    def generate(
        self,
        prompt: Prompt | LocalReplacementModel,
        interventions: Sequence[Intervention] = (),
        max_new_tokens: int = 20,
        freeze: Freeze | str = "iterative",
        errors: Errors = "frozen",
        freeze_prompt_only: bool = True,
        return_logits: bool = False,
        return_activations: bool = False,
        **sampling: Any,
    ) -> Generation:
        """Generate from a prompt under interventions, which act on generated tokens where their positions are open-ended.

        Args:
            prompt: A text, token ids, or the prompt's local replacement model.
            interventions: What to change; an empty list generates as the unchanged model does.
            max_new_tokens: The largest number of tokens to generate.
            freeze: What is held at the prompt's tokens, as for `intervene`.
            errors: What becomes of the part of the MLP outputs that transcoders miss: `"frozen"`, `"recomputed"` or
                `"dropped"`.
            freeze_prompt_only: Whether generated tokens are computed anew; False holds them at what the unchanged model
                does on the tokens so far, without a KV cache.
            return_logits: Whether to return the logits of each step.
            return_activations: Whether to return the active features.
            sampling: Arguments of `transformers`' `generate`, such as `do_sample`, `temperature` and
                `num_return_sequences`. Without `do_sample=True` the most probable token is taken.

        Returns:
            The generated sequences; see `crosstrace.replacement_model.Generation`.

        Raises:
            ValueError: The prompt, an intervention or a setting is not valid, or two settings exclude each other; one
                line that names it.

        Example:
            >>> model.generate("The capital of the state containing Dallas is", [Ablate("Texas")], max_new_tokens=1).texts
        """
        return generate(
            self,
            prompt,
            interventions,
            max_new_tokens,
            freeze,
            errors,
            freeze_prompt_only,
            return_logits,
            return_activations,
            **sampling,
        )


def dictionary_of(model: LoadedModel, dictionary: DictionaryInUse | None = None) -> DictionaryInUse:
    """Return the dictionary that is meant: the one that is named, or else a replacement model's transcoders.

    Raises:
        ValueError: There is neither.
    """
    if dictionary is not None:
        return dictionary
    if isinstance(model, ReplacementModel):
        return model.transcoders
    raise ValueError(f"{model.name} is a model without transcoders: name the dictionary to read it with")
