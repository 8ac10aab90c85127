"""The report's page: its HTML shell, tables and style sheet. No script, no request, nothing to load."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.core import escaped

SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""

CSS = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:40px 32px 56px;background:#f7f7f5;color:#1f2937;
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 -webkit-text-size-adjust:100%;overflow-wrap:anywhere}
h1{margin:6px 0 22px;max-width:28em;font-size:clamp(1.45rem,1.1rem + 1.7vw,2.2rem);line-height:1.22;
 font-weight:650;letter-spacing:-.015em;text-wrap:balance}
h2{margin:0 0 10px;font-size:1.06rem;line-height:1.3;font-weight:650}p{margin:0 0 10px}
.kicker{color:#0b4f8a;font-size:.92rem;font-weight:600}
.quiet{color:#5b6472;font-size:.9rem;max-width:48rem}
.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px 32px;
 margin:0 0 20px;padding:0;list-style:none}
.keys b{display:block;font-size:1.5rem;line-height:1.25}.keys span{color:#5b6472;font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px;margin:28px 0 36px}
dl{display:grid;grid-template-columns:minmax(0,2fr) minmax(0,3fr);gap:7px 18px;margin:0;font-size:.93rem}
dt{color:#5b6472}dd{margin:0}
section:not(.card){margin:0 0 34px}
.scroll{overflow:auto;max-height:85vh;margin:0 0 12px;background:#fff;border:1px solid #e5e7ea;
 border-radius:10px}
table{width:100%;border-collapse:separate;border-spacing:0;font-size:.9rem;
 font-variant-numeric:tabular-nums}
thead,tfoot{position:sticky;background:#fff}thead{top:0;z-index:2}tfoot{bottom:0;z-index:1}
th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-top:1px solid #eef0f2}
thead th{vertical-align:bottom;color:#5b6472;font-weight:600;line-height:1.3;border-top:0}
thead tr:last-child th{border-bottom:1px solid #e5e7ea}tfoot :is(th,td){border-top-color:#e5e7ea}
tbody:first-of-type tr:first-child>*{border-top:0}
.figures thead th{white-space:normal;overflow-wrap:normal}
.figures .groups th{text-align:left;padding-bottom:0;white-space:nowrap}
.groups td{border:0}
.figures :is(td,th[scope=col]):is(:nth-child(3),:nth-child(9)),.groups th{border-left:1px solid #e5e7ea}
.figures tfoot{color:#5b6472}
.figures th[scope=row]{position:sticky;left:0;background:#fff}
.figures .chosen>*{background:#fdf1ea!important}.chosen th{color:#c2410c}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.pair{display:grid;grid-template-columns:minmax(0,17fr) minmax(0,10fr);gap:20px;align-items:start}
.pair .scroll{margin:0}
.kept thead th{white-space:normal;overflow-wrap:normal}.kept :is(th,td){padding:7px 9px}
.kept :is(th,td):last-child{text-align:left}
details{margin:22px 0}
summary{margin-bottom:12px;cursor:pointer;font-weight:600}
.exits :is(th,td):not(:last-child){text-align:left}
.guarantees :is(th,td):is(:nth-child(2),:last-child){text-align:left}
.guarantees td:nth-child(2){white-space:normal;min-width:10rem}
.exits tbody th{vertical-align:top}
.exits tbody tr:not(:first-child) td{padding-top:0;border-top:0}
footer{margin-top:34px;padding-top:18px;border-top:1px solid #e0e2e6;color:#5b6472;font-size:.88rem}
footer p{max-width:54rem}
@media (max-width:820px){
 body{padding:24px 16px 40px}
 .cards,.pair{grid-template-columns:minmax(0,1fr);gap:16px}
}
@media print{.scroll{max-height:none;overflow:visible}thead,tfoot{position:static}}
"""


def grid(label: str, kind: str, columns: Sequence[str], body: str, spans: str = "") -> str:
    """A table that scrolls by itself; ``body`` follows its head, whose first row may be ``spans``."""
    above = f"<tr class=groups>{spans}</tr>\n" if spans else ""
    names = "".join(f"<th scope=col>{escaped(name)}</th>" for name in columns)
    return (
        f"<div class=scroll tabindex=0 role=region aria-labelledby=caption-{kind}><table class={kind}>\n"
        f"<caption id=caption-{kind}>{label}</caption>\n"
        f"<thead>{above}<tr>{names}</tr></thead>\n{body}\n</table></div>"
    )


def cells(values: Sequence[str]) -> str:
    """Cells of one row; ``values`` are HTML."""
    return "".join(f"<td>{value}</td>" for value in values)
