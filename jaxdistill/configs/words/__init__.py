"""Which experiments have the toy world's problems in words, on a pretrained model and one GPU?

A model is fine-tuned to search aloud, then distilled and compared as in `configs.toy`. May import
what `configs` may.
"""
