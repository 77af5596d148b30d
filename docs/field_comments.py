"""The comments at a class's fields, which the settings page and the API reference show."""

import ast
import textwrap


def comments_at_fields(source: str) -> dict[str, str]:
    """{field: the comment above it and the one behind it} of a class's own annotated fields."""
    lines = textwrap.dedent(source).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above, row = [], node.lineno - 2
        while lines[row].lstrip().startswith("#"):
            above.insert(0, lines[row].strip().lstrip("# "))
            row -= 1
        assert node.end_lineno is not None
        behind = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip("# ")
        if comment := " ".join(filter(None, [*above, behind])):
            found[node.target.id] = comment
    return found
