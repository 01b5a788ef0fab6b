"""Interventions: what a pass changes, what it holds fixed, and the passes themselves.

- `kinds`: the interventions and the places they act on;
- `freeze`: what a pass holds fixed;
- `references`: features as people write them, `L3/417@7` or a label;
- `edits`: interventions checked against a prompt, one factor and offset per place;
- `edited_features`: sparse activations of a batch, and edits applied to them;
- `padded_prompts`: local replacement models of several prompts side by side;
- `held_errors`: what becomes of the part of the MLP outputs that transcoders miss;
- `frozen_pass`: a pass on the change alone, with attention frozen;
- `hooked_pass`: a pass through the `transformers` model with hooks;
- `running`: prompts under interventions, one at a time or in batches; `outcomes`: what they return;
- `generation`: generation under interventions.
"""
