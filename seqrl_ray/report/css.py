"""The style sheet of the report: light, dark and print, from the palette of `style.py`."""

from __future__ import annotations

from seqrl_ray.report.style import PALETTE

_RULES = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 var(--font)}
main{max-width:1120px;margin:0 auto;padding:2.5rem 1.5rem 4rem}
.kicker{margin:0;color:var(--muted);font-size:.85rem;letter-spacing:.02em}
.badge{margin-left:.5rem;padding:.1rem .55rem;border:1px solid var(--grid);border-radius:1rem}
h1{margin:.2rem 0 .4rem;font-size:2rem;line-height:1.2;overflow-wrap:anywhere}
h2{margin:0 0 .8rem;font-size:1.25rem}
h3{margin:0 0 .3rem;font-size:1rem}
.about{margin:0 0 .8rem;color:var(--muted)}
.headline{margin:1.2rem 0;padding:.9rem 1.2rem;border-left:4px solid var(--policy);background:var(--tint)}
.headline p{margin:.25rem 0}
.lead{font-size:1.2rem;font-weight:600}
.alarms{margin:1rem 0;padding:.7rem 1.2rem .7rem 2.2rem;border-left:4px solid var(--alarm);
background:var(--tint)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1.4rem 0 0;padding:.7rem 0;font-size:.9rem;
border-top:1px solid var(--grid);border-bottom:1px solid var(--grid)}
a{color:var(--policy)}
nav a{text-decoration:none}
nav a:hover,nav a:focus{text-decoration:underline}
section{margin-top:2.6rem;scroll-margin-top:1rem}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(14.5rem,1fr));gap:.9rem 1.5rem;margin:0}
.facts div{border-top:1px solid var(--grid);padding-top:.4rem}
dt{color:var(--muted);font-size:.8rem}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.scroll,.plot{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:0 0 1rem;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.2rem 0 .5rem}
th,td{padding:.38rem .6rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom;white-space:normal}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{font-weight:500}
tr.policy th,tr.policy td{font-weight:700}
td.better{color:var(--max-pressure);font-weight:600}
td.worse{color:var(--alarm);font-weight:600}
.swatch{display:inline-block;width:.7rem;height:.7rem;margin-right:.5rem;border-radius:2px}
figure{margin:0 0 1.8rem}
.plot svg{display:block;width:100%;min-width:44rem;height:auto}
figcaption,.note{margin:.4rem 0 0;color:var(--muted);font-size:.85rem;max-width:60rem}
.note{margin-bottom:1.4rem}
.missing{color:var(--muted);font-style:italic}
details{margin:.5rem 0}
summary{cursor:pointer}
pre{overflow-x:auto;padding:.8rem 1rem;background:var(--tint);
font:13px/1.45 ui-monospace,Menlo,Consolas,monospace}
@page{margin:14mm}
@media print{main{max-width:none;padding:0}nav{display:none}figure,table,.headline{break-inside:avoid}
h2{break-after:avoid}.plot svg{min-width:0}.scroll,.plot{overflow:visible}body{font-size:11pt}}
"""
_TINT = ("#f4f7fa", "#1d242d")


def stylesheet() -> str:
    """CSS with the palette as variables; print is always light."""
    font = "--font:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;"
    light, dark = (
        "".join(f"--{name}:{pair[place]};" for name, pair in {**PALETTE, "tint": _TINT}.items())
        for place in (0, 1)
    )
    return f":root{{{font}{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{_RULES}"
