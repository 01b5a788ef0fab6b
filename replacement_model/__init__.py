"""Base models with their MLPs replaced by transcoders: loading, the replacement model, the local replacement model.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so that what needs no tensors, such
as `crosstrace.replacement_model.demo`, does not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
