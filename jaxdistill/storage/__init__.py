"""Where does a model come from, and where is it kept?

Hugging Face folders in and out, Orbax checkpoints, tokenizers, and opening whatever a name means.
May import `objectives` and every room that it may; only here are Orbax and safetensors imported.
"""
