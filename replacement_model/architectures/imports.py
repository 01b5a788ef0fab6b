"""Importing the models of `transformers` without what only training, compiling and several devices need.

`transformers.modeling_utils` imports the sharded tensors of `torch.distributed` (and with them sympy), torch's compiler,
`accelerate` and `scipy.optimize`, whichever model is loaded: more than half of the time that a small trace takes. While
`deferred_imports` is in force, these modules are stood in for. A stand-in, and each name that is imported from it, loads
the real module once anybody asks for more than its existence. Where another version of `transformers` does so at once,
loading takes longer and nothing else changes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"

DEFERRED = (
    "accelerate",
    "scipy.optimize",
    _COMPILER,
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
)
"""The modules that a forward pass on one device never needs; their submodules are meant too."""


@contextmanager
def deferred_imports(names: Sequence[str] = DEFERRED) -> Iterator[None]:
    """Stand in for modules that are imported in the block, unless they are loaded already.

    What a stand-in holds may be imported by name, called, subclassed and asked for attributes, all of which load the
    module, and be tested with `isinstance`, which does not: without the module there is no instance. After the block
    nobody finds the stand-ins any more; whoever holds one uses the real module through it.

    Args:
        names: The modules.

    Example:
        >>> with deferred_imports():
        ...     from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM
    """
    finder = _Finder([name for name in names if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        with _marking_later(finder.marks) if _COMPILER in finder.names else nullcontext():
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in list(finder.names):
            finder.give_up(name)


@contextmanager
def models_listed_once() -> Iterator[None]:
    """Let `transformers` find out once in the block which classes its models have, not twice.

    The package itself reads its 1,600 files of models for that, and its part `models` reads them again: 0.3 s.
    """
    from transformers.utils import import_utils

    holder: Any = import_utils
    listed = getattr(holder, "create_import_structure_from_path", None)
    if listed is None:  # in another version
        yield
        return

    def listed_by_folder(path: str | os.PathLike[str]) -> Any:
        path = Path(path)
        return listed(path.parent if path.name == "__init__.py" else path)

    holder.create_import_structure_from_path = listed_by_folder
    try:
        yield
    finally:
        holder.create_import_structure_from_path = listed


class _Finder(MetaPathFinder, Loader):
    """What finds stand-ins for modules and their submodules."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.marks = names, _Marks()
        self._stand_ins: dict[str, _StandIn] = {}

    def stands_in_for(self, module: str) -> bool:
        """Whether a module is stood in for by now."""
        return any(_is_within(module, name) for name in self.names)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not self.stands_in_for(fullname) or not _is_imported():
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        stand_in = self._stand_ins[spec.name] = _StandIn(spec.name, self)
        if spec.name == _COMPILER:
            vars(stand_in).update(self.marks.decorators())
        return stand_in

    def exec_module(self, module: ModuleType) -> None:
        pass

    def give_up(self, module: str) -> None:
        """Stand in for a module, and all that are deferred with it, no longer: who imports it gets the real one."""
        given_up = [name for name in self.names if _is_within(module, name)]
        self.names[:] = [name for name in self.names if name not in given_up]
        for name in [name for name in self._stand_ins if any(_is_within(name, root) for root in given_up)]:
            stand_in = self._stand_ins.pop(name)
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
            parent, _, own = name.rpartition(".")
            if (holder := sys.modules.get(parent)) is not None and vars(holder).get(own) is stand_in:
                delattr(holder, own)


def _is_within(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def _is_imported() -> bool:
    """Whether the finder is asked by an import; `importlib.util.find_spec` only wants to know what is installed."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or "<frozen imp" in frame.f_code.co_filename
    ):
        if frame.f_code.co_name == "find_spec" and frame.f_globals.get("__name__") == "importlib.util":
            return False
        frame = frame.f_back
    return True


class _StandIn(ModuleType):
    """A module that is loaded when first used."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return _Deferred(self, name) if self._finder.stands_in_for(self.__name__) else getattr(self.real(), name)

    def real(self) -> ModuleType:
        """Return the module itself, imported now if it has not been."""
        self._finder.give_up(self.__name__)
        return importlib.import_module(self.__name__)

    def is_loaded(self) -> bool:
        """Whether the module itself has been imported by anybody."""
        return not self._finder.stands_in_for(self.__name__) and self.__name__ in sys.modules


class _Deferred:
    """A class, function or submodule of a module that is not loaded."""

    def __init__(self, module: _StandIn, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        module = self._module.real()
        if not hasattr(module, self._name):
            return importlib.import_module(f"{module.__name__}.{self._name}")
        return getattr(module, self._name)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._real()(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._module.is_loaded() and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._module.is_loaded() and issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:  # in annotations
        return Any

    __ror__ = __or__

    def __repr__(self) -> str:
        return f"<{self._module.__name__}.{self._name}, not loaded>"


class _Marks(MetaPathFinder):
    """Decorators for torch's compiler that wait until it is loaded. None of them changes what a function returns."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[ModuleType], None]] = []

    def decorators(self) -> dict[str, Callable[..., Any]]:
        """Return the decorators by the names that they have in `torch.compiler` and in the compiler itself."""
        return {
            "allow_in_graph": self.allow_in_graph,
            "assume_constant_result": self.assume_constant_result,
            "disable": self.disable,
        }

    def allow_in_graph(self, fn: Any) -> Any:
        self._waiting.append(lambda compiler: compiler.allow_in_graph(fn))
        return fn

    def assume_constant_result(self, fn: Any) -> Any:
        self._waiting.append(lambda compiler: compiler.assume_constant_result(fn))
        return fn

    def disable(self, fn: Any = None, recursive: bool = True, **settings: Any) -> Any:
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, **settings)
        current = [fn]

        @functools.wraps(fn)
        def call(*args: Any, **named: Any) -> Any:
            return current[0](*args, **named)

        def mark(compiler: ModuleType) -> None:
            current[0] = compiler.disable(fn, recursive, **settings)

        self._waiting.append(mark)
        return call

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Have the marks made right after the compiler is loaded, by whoever imports it."""
        if fullname != _COMPILER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_mark(module: ModuleType) -> None:
                load(module)
                for mark in self._waiting:
                    mark(module)

            spec.loader.exec_module = load_and_mark  # type: ignore[method-assign]
        return spec


@contextmanager
def _marking_later(marks: _Marks) -> Iterator[None]:
    """Have functions that are marked for torch's compiler in the block marked once somebody loads the compiler."""
    import torch

    own = {name: getattr(torch.compiler, name) for name in marks.decorators()}
    vars(torch.compiler).update(marks.decorators())
    try:
        yield
    finally:
        vars(torch.compiler).update(own)
        sys.meta_path.insert(0, marks)
