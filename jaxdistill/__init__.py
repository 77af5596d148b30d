"""Self-distillation of reasoning models in JAX: reproduce its damage, measure it, prevent it.

    import jaxdistill as jd

    model = jd.load("path/to/folder")              # a Hugging Face folder, a run folder or a hub id
    logits_BSV = model.logits(tokens_BS, mask_BS)  # float32; the mask is optional
    texts = model.generate(["1+1?"], jd.Sampling(max_new_tokens=256), rollouts=8)
    model.save("path/to/new_folder")               # a Hugging Face folder

The rest is in the modules. Importing the package alone imports neither JAX nor anything else.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Where the names below come from; they are imported when they are first asked for (PEP 562).
_NAMES = {"load": "notebook", "Model": "notebook", "Sampling": "sampling"}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdistill.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
