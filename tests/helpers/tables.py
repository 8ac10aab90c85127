"""Tables of a notebook, read as a screen reader would."""

from __future__ import annotations

from html.parser import HTMLParser


class Table(HTMLParser):
    """Caption, column heads and rows (each headed by a th of scope row)."""

    def __init__(self, text):
        super().__init__()
        self.caption, self.heads, self.rows, self.tags, self.into = "", [], [], set(), None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            assert tag == "td" or attributes["scope"] in ("col", "row")
            self.rows[-1].append("")
        self.into = tag

    def handle_data(self, data):
        if self.into == "caption":
            self.caption += data
        elif self.into in ("th", "td"):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self.into = None
        if tag == "thead":
            [self.heads], self.rows = self.rows, []


def read(item):
    table = Table(item._repr_html_())
    assert table.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert table.caption
    assert {len(row) for row in table.rows} == {len(table.heads)}
    return table
