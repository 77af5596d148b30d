"""How does a batch of samples become an update of the student?

The step, who the teacher is, what a batch holds, and where batches come from. May import
`evaluation` and every room that it may, but not `config`: a step is built from the parts of one.
"""
