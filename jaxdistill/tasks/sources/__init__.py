"""Data sets by name, read into questions: files, TFDS, and the Hugging Face hub.

names: what a name means. files, hub, tfds: rows of each kind of source, as (place, record).
published, builders: public data sets, where they are, and their preparation for TFDS.
columns, with chat, answers and options: a record as a question. instruction: how a prompt asks for
its answer. reading: all of it, with repeated prompts, subsets and bad rows.
"""

from jaxdistill.tasks.sources.reading import Loaded, Reading, accepted, read, rows_of

__all__ = ["Loaded", "Reading", "accepted", "read", "rows_of"]
