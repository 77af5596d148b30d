"""What do finished runs and studies show? One HTML page, figures and Markdown tables from folders.

May import `config` and every room that it may, but no JAX. `load` reads, `findings` computes and
judges, `tables`, `figures`, `examples` and `caveats` arrange, `html` and `markdown` are the two
formats, and `write` puts the pages together. Every sentence follows from a folder's numbers.
"""

from jaxdistill.report.write import study_markdown, write_run_report, write_study_report

__all__ = ["study_markdown", "write_run_report", "write_study_report"]
