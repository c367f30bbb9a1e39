"""The parts of an HTML page: escaped text, tables, embedded pictures. Only what is made here is markup."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched, and no script runs


class Html(str):
    """Text that is markup already; any other text is escaped where it is put into a page."""


def text(value: object) -> Html:
    """A value as escaped text; markup as it is. What UTF-8 has no form for, as in odd file names, is written out."""
    if isinstance(value, Html):
        return value
    return Html(escape(str(value).encode("utf-8", "backslashreplace").decode()))


def element(tag: str, *content: object, **attributes: str) -> Html:
    """<tag attributes>content</tag>; `klass` stands for class."""
    told = "".join(f' {name.replace("klass", "class")}="{text(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{told}>{''.join(map(text, content))}</{tag}>")


def joined(parts: Iterable[object]) -> Html:
    """Parts one after another."""
    return Html("\n".join(map(text, parts)))


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table whose first column names its rows; in a narrow window it is moved sideways by itself."""
    head = element("thead", element("tr", *(element("th", name) for name in header))) if any(header) else ""
    body = [element("tr", element("th", row[0]), *(element("td", cell) for cell in row[1:])) for row in rows]
    return element("div", element("table", head, element("tbody", *body)), klass="wide")


def picture(content: bytes, kind: str, caption: str, klass: str = "") -> Html:
    """A picture with its content inside the page, and a caption."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    of_class = f' class="{text(klass)}"' if klass else ""
    image = Html(f'<img src="{source}" alt="{text(caption)}"{of_class}>')
    return element("figure", element("figcaption", caption), image)


def section(title: str, *content: object) -> Html:
    """A part of the page under a heading."""
    return element("section", element("h2", title), joined(content))


def note(line: object) -> Html:
    """A line about something that is not there."""
    return element("p", line, klass="dim")


def page(title: str, *content: object) -> str:
    """A whole page, which fetches nothing."""
    head = f"""<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(title)}</title>
<style>
{STYLE.read_text()}</style>"""
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{joined(content)}\n</body>\n</html>\n'
