"""The outcome of a run on a terminal, in 80 columns: what `seqrl train`, `evaluate` and `report` end with."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from seqrl_ray.report.run_folder import POLICY, RunFolder
from seqrl_ray.report.tables import FAILURE_HEADS, controller_rows, failure_rows
from seqrl_ray.report.wording import best_note, comparisons, facts, headline, judged, warnings

_PAINT = {"better": "green", "worse": "red"}
_FACTS = (
    "environment steps",
    "updates",
    "wall time",
    "environment steps per s",
    "updates per s",
    "samples per insert",
)


def outcome(run: RunFolder) -> RenderableType:
    """The headline, the controllers, the run's figures, and what went wrong."""
    parts: list[RenderableType] = [Text(headline(run), style="bold")]
    parts += [Text(sentence) for sentence in comparisons(run)]
    parts += [Text(f"! {warning}", style="yellow") for warning in warnings(run)]
    if run.stats:
        parts.append(_controllers(run))
    if note := best_note(run):
        parts.append(Text(note, style="dim"))
    known = dict(facts(run))
    figures = [f"{known[name]} {name}" for name in _FACTS if name in known]
    if figures:
        parts.append(Text("; ".join(figures), style="dim"))
    if run.failures:
        parts.append(_failures(run))
    return Group(*parts)


def _controllers(run: RunFolder) -> RenderableType:
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="dim", title=judged(run).title, title_justify="left"
    )
    table.add_column("controller", no_wrap=True)
    rows = controller_rows(run)
    fields = {  # head -> field; a column that says nothing is left out
        "mean": "mean",
        "median": "median",
        "p95": "p95",
        "grid-\nlock": "gridlocked",
        "viol-\nations": "safety_violations",
        "x\nfixed": "to_fixed",
        "policy -\nthis, 95 %": "difference_ci95",
        "policy\nis": "verdict",
    }
    told = ("", "0", "\u2013")  # the headline says how many gridlocks and violations the policy has
    shown = {head: f for head, f in fields.items() if any(getattr(row, f) not in told for row in rows)}
    for head in shown:
        table.add_column(head, justify="left" if head == "policy\nis" else "right", no_wrap=True)
    for row in rows:
        texts = [getattr(row, f) for f in shown.values()]
        cells = [Text(text, style=_PAINT.get(text, "")) for text in texts]
        table.add_row(Text(row.name), *cells, style="bold" if row.name == POLICY else "")
    return Padding(table, (1, 0, 0, 0))


def _failures(run: RunFolder) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="Failures", title_justify="left")
    for place, head in enumerate(FAILURE_HEADS):
        table.add_column(head, justify="right" if place else "left")
    for cells in failure_rows(run):
        table.add_row(*(Text(cell) for cell in cells))
    return table
