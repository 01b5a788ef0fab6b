"""What loading a model imports, and what stands in for the rest."""

import subprocess
import sys

import pytest

from crosstrace.replacement_model.architectures.imports import deferred_imports

LOADED = """
import sys, torch
from crosstrace.replacement_model import ReplacementModel, demo
model = ReplacementModel.demo()
model.local(demo.DALLAS_PROMPT)
unused = ("torch._dynamo", "torch.distributed.tensor", "sympy", "accelerate", "scipy.optimize", "triton")
print([name for name in unused if name in sys.modules])
"""
USED = """
from torch.distributed.tensor import DTensor
from transformers.distributed import sharding_utils
print(isinstance(torch.ones(1), sharding_utils.DTensor), torch.distributed.tensor.DTensor is DTensor)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), sys.modules["torch._dynamo"] is torch._dynamo)
tokens = model.tokenize("Dallas is")[None]
compiled = torch.compile(model.model, backend="eager")
with torch.no_grad():
    print(torch.equal(compiled(tokens).logits, model.model(tokens).logits))
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LISTED = """
from crosstrace.replacement_model.architectures.imports import models_listed_once
from transformers.utils import import_utils
before = import_utils.create_import_structure_from_path.cache_info().misses
with models_listed_once():
    import transformers.models
print(import_utils.create_import_structure_from_path.cache_info().misses - before)
mine = transformers.models._class_to_module
import_utils.create_import_structure_from_path.cache_clear()
import_utils.define_import_structure.cache_clear()
path = transformers.models.__file__
again = import_utils._LazyModule("again", path, import_utils.define_import_structure(path))
print(mine == again._class_to_module, len(mine) > 1000)
"""


def test_models_are_listed_once_and_as_before():
    assert run(LISTED) == ["0", "True True"]


def test_a_trace_imports_neither_the_compiler_nor_sharded_tensors():
    assert run(LOADED) == ["[]"]


@pytest.mark.slow
def test_what_was_stood_in_for_is_there_when_it_is_used():
    assert run(LOADED + USED)[1:] == ["False True", "2.0 True", "True"]


def test_a_stand_in_loads_its_module_when_it_is_used(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("class Base:\n    name = 'base'\n\ndef double(x):\n    return 2 * x\n")
    (package / "inner.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with deferred_imports(["some_package"]):
        from some_package import Base, double
        from some_package import inner as stand_in

        assert "not loaded" in repr(Base)
        assert not isinstance(3, Base)
        assert not issubclass(int, Base)
    assert "some_package" not in sys.modules
    assert double(4) == 8
    assert stand_in.VALUE == 3

    class Derived(Base):
        pass

    import some_package

    assert Derived.__mro__[1] is some_package.Base
    assert isinstance(some_package.Base(), Base)
    assert Base.name == "base"
    for name in ("some_package", "some_package.inner"):
        monkeypatch.delitem(sys.modules, name)


def test_a_stand_in_that_is_used_in_the_block_is_replaced_at_once(tmp_path, monkeypatch):
    (tmp_path / "some_module.py").write_text("class Base:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with deferred_imports(["some_module"]):
        from some_module import Base

        class Derived(Base):
            pass

        import some_module

        assert Derived.__mro__[1] is some_module.Base
    monkeypatch.delitem(sys.modules, "some_module")


def test_loaded_modules_stay(monkeypatch):
    import json.tool

    with deferred_imports(["json.tool"]):
        import json.tool as again

        assert again is json.tool
        assert callable(again.main)


def test_asking_whether_something_is_installed_is_answered_truthfully():
    import importlib.util

    with deferred_imports(["no_such_module"]):
        assert importlib.util.find_spec("no_such_module") is None
