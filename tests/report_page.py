"""Reads a report's page as text."""

import html
import re


def cells(page, section):
    """The body cells of the first table in the section, as plain text, row by row."""
    table = re.search(rf'id="{section}".*?<tbody>(.*?)</tbody>', page, re.DOTALL).group(1)
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    strip = lambda cell: " ".join(html.unescape(re.sub(r"<[^>]*>", "", cell)).split())  # noqa: E731
    return [[strip(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]
