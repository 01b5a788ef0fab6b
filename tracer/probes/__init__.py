"""Probes: sparse read-outs on latents, trained on labelled texts and tested beside what could do as well without them."""
