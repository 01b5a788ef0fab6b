"""Tracing a prompt into its attribution graph, feature cards, interventions, validation, and the command line.

The names are listed in `__init__.pyi` and loaded when first used, so that `crosstrace --help` need not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
