"""Self-distillation of reasoning models in JAX: reproduce its damage, measure it, prevent it.

    import jaxdistill as jd

    model = jd.load("path/to/folder")              # a Hugging Face folder, a run folder or a hub id
    print(model)                                   # its sizes, and where it comes from
    logits_BSV = model.logits(tokens_BS, mask_BS)  # float32; the mask is optional
    texts = model.generate(["1+1?"], jd.Sampling(max_new_tokens=256), rollouts=8)
    model.save("path/to/new_folder")               # a Hugging Face folder

Invalid input raises `jd.UserError` with a message of one line. Everything else is in the modules.
`import jaxdistill` by itself imports neither JAX nor any other package.
"""

__version__ = "0.1.0"

# The modules of the other public names, which are imported on first access (PEP 562).
_HOMES = {
    "Model": "api",
    "Sampling": "sampling",
    "UserError": "errors",
    "load": "api",
    "trace": "api",
}

__all__ = ["Model", "Sampling", "UserError", "__version__", "load", "trace"]  # pyright: ignore


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"jaxdistill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
