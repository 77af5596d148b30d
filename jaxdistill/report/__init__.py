"""Run and study folders -> figures, one HTML page, Markdown tables. No JAX is imported here.

`load` reads, `findings` computes and judges, `tables`, `figures`, `examples` and `caveats` arrange,
`html` and `markdown` write, `pages` puts the pages together. Every sentence on a page follows from
the numbers of the folder it describes.
"""

from jaxdistill.report.pages import study_markdown, write_run_report, write_study_report

__all__ = ["study_markdown", "write_run_report", "write_study_report"]
