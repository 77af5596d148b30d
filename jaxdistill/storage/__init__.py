"""Where does a model come from, and where is it kept?

Import and export of Hugging Face folders, Orbax checkpoints, tokenizers, and the lookup from a name
to a model. May import `objectives` and every package that `objectives` may import. Orbax and
safetensors are imported here only.
"""
