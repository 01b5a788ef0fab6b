"""The package's public names: each one resolves, and none is imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import crosstrace.replacement_model as package


def test_every_public_name_resolves():
    assert {"ReplacementModel", "Gemma3Description", "direct_logits", "weight_fingerprints"} <= set(dir(package))
    for name in dir(package):
        assert getattr(package, name) is not None


def test_the_demo_and_its_corpus_are_there_without_torch():
    code = (
        "import sys; from crosstrace.replacement_model import demo; import crosstrace.replacement_model.demo.corpus; "
        "assert demo.load_facts().states; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
