"""How does a batch of samples become an update of the student?

The train step, the teachers, the batch and its layouts, and the sources of batches. May import
`evaluation` and everything below it, but not `config`: a step is built from parts of a config.
"""
