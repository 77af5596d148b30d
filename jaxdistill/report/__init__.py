"""What do finished runs and studies show? One HTML page, figures and Markdown tables from folders.

May import `config` and every package that `config` may import, but no JAX. `load` reads, `findings`
computes and judges, `tables`, `figures`, `examples` and `caveats` prepare the contents, `html` and
`markdown` are the two formats, and `write` assembles the pages. Every sentence is derived from the
numbers of a folder.
"""

from jaxdistill.report.write import study_markdown, write_run_report, write_study_report

__all__ = ["study_markdown", "write_run_report", "write_study_report"]
