"""The HTML report of a sweep: one self-contained file in the look of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from seqrl_ray.report import sweep_figures
from seqrl_ray.report.css import stylesheet
from seqrl_ray.report.style import Drawing
from seqrl_ray.report.sweep_folder import Sweep

Section = tuple[str, str, str]
"""Anchor, title, HTML."""


def render(sweep: Sweep) -> str:
    """The whole page."""
    name = escape(str(sweep.settings.get("name", sweep.path.name)))
    sections = _sections(sweep)
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{content}</section>'
        for anchor, title, content in sections
    )
    status = escape(str(sweep.summary.get("status", "status unknown")))
    lead = escape(str(sweep.summary.get("conclusion") or "The sweep has not come to its end yet."))
    about = escape(str(sweep.settings.get("description") or ""))
    alarms = "".join(f"<li>{escape(line)}</li>" for line in _alarms(sweep))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} \u2013 seqrl-ray sweep</title><style>{stylesheet()}</style></head><body><main>"
        f'<header><p class="kicker">seqrl-ray sweep report <span class="badge">{status}</span></p>'
        f"<h1>{name}</h1>{f'<p class=about>{about}</p>' if about else ''}"
        f'<div class="headline"><p class="lead">{lead}</p>{_how_chosen(sweep)}</div>'
        f"{f'<ul class=alarms>{alarms}</ul>' if alarms else ''}</header>"
        f'<nav aria-label="Sections">{links}</nav>{body}</main></body></html>\n'
    )


def _sections(sweep: Sweep) -> list[Section]:
    no_scores = "No trial has reported a finite score yet."
    sections = [
        ("sweep", "The sweep", _facts(sweep)),
        ("final", "Winner and default", _final(sweep)),
        ("population", "Scores over time", _figure(sweep_figures.population(sweep), no_scores)),
        ("values", "Values over time", _figure(sweep_figures.values(sweep), "No numbers are searched.")),
    ]
    if sweep.summary.get("scheduler") == "pbt":
        tree = _figure(sweep_figures.lineage(sweep), "Nobody has copied anybody.")
        sections.append(("lineage", "Lineage", tree + _schedule(sweep)))
    sections += [
        ("coordinates", "All values at once", _figure(sweep_figures.coordinates(sweep), no_scores)),
        ("trials", "Trials", _trials(sweep)),
        ("file", "Sweep file", _file(sweep)),
    ]
    return sections


def _how_chosen(sweep: Sweep) -> str:
    score = sweep.summary.get("score")
    if not score:
        return ""
    said = (
        f"The winner has the best last score of its own: {score['statistic']} of {score['metric']} over "
        f"{score['episodes']} greedy episodes on seeds from {score['first_seed']}, the same for all trials."
    )
    trials = sweep.summary.get("trials")
    steps = sweep.summary.get("env_steps_per_trial")
    cost = f"The search took {trials} trials of {steps:,} steps; the default is one trial of as many."
    return f"<p>{escape(said)}</p><p>{escape(cost)}</p>"


def _alarms(sweep: Sweep) -> list[str]:
    found = []
    final = sweep.summary.get("final")
    if final and final.get("verdict") in ("worse", "equal", "unclear"):
        found.append("The sweep does not beat the default recipe.")
    if diverged := sweep.summary.get("diverged"):
        found.append(f"{diverged} scores were not finite; who made them was replaced at once.")
    for error in sweep.summary.get("errors") or ():
        found.append(str(error).strip().splitlines()[-1])
    return found


def _facts(sweep: Sweep) -> str:
    summary, search = sweep.summary, sweep.settings.get("search", {})
    facts = {
        "scheduler": summary.get("scheduler"),
        "first values": summary.get("search"),
        "trials": summary.get("trials"),
        "steps per trial": summary.get("env_steps_per_trial"),
        "copies": summary.get("copies"),
        "begun anew": summary.get("anew"),
        "sessions": summary.get("sessions"),
        "wall time": None if summary.get("wall_s") is None else f"{summary['wall_s']:,.0f} s",
        "base recipe": sweep.settings.get("recipe"),
        **{key: _range(dimension) for key, dimension in search.items()},
    }
    tiles = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_text(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    return f'<dl class="facts">{tiles}</dl>'


def _range(dimension: Mapping[str, Any]) -> str:
    if dimension["kind"] == "choice":
        return "one of " + ", ".join(_text(v) for v in dimension["values"])
    return f"{dimension['kind'].replace('_', '-')} {dimension['low']:g} \u2026 {dimension['high']:g}"


def _final(sweep: Sweep) -> str:
    final = sweep.summary.get("final")
    if not final:
        return '<p class="missing">The winner has not been judged yet.</p>'
    rows = [["winner", *_stats(final["winner"])]]
    if final["default"] is not None:
        rows.append(["default", *_stats(final["default"])])
        gap = final["paired"]
        difference = [_number(gap["mean_difference"]), _interval(gap["ci95"])]
        rows.append(["winner \u2212 default", *difference, "", ""])
    order = "lower is better" if final["lower_is_better"] else "higher is better"
    table = _table(
        f"{final['metric']} on held-out seeds, {order}",
        ["", "mean", "95 % interval", "median", "seeds"],
        rows,
    )
    note = (
        '<p class="note">Not adjusted for what is shared: one training seed each. A replay '
        "(<code>seqrl tune --replay</code>) says whether the schedule does it again.</p>"
    )
    drawing = sweep_figures.seeds(sweep)
    return table + note + ("" if drawing is None else _figure(drawing, ""))


def _schedule(sweep: Sweep) -> str:
    winner = sweep.summary.get("winner") or {}
    rows = [
        [f"{at:,}", *(_text(values.get(key)) for key in sweep.keys)]
        for at, values in winner.get("schedule", ())
    ]
    if not rows:
        return ""
    return _table("The winning schedule", ["from step", *sweep.keys], rows)


def _trials(sweep: Sweep) -> str:
    rows = []
    for member, life in sweep.lives.items():
        last = life[-1]
        copies = sum(r.action == "copy" for r in life)
        finite = [r.score for r in life if r.score is not None]
        best = (min if sweep.lower_is_better else max)(finite) if finite else None
        values = [_text(last.before.get(key)) for key in sweep.keys]
        name = f"{member}" + (" (winner)" if member == sweep.winner else "")
        rows.append(
            [name, _number(last.score), _number(best), f"{last.env_steps:,}", f"{copies}", *values]
        )
    if not rows:
        return '<p class="missing">No trial has reported yet.</p>'
    heads = ["trial", "last score", "best score", "steps", "copies", *sweep.keys]
    return _table(f"{sweep.metric}, {sweep.statistic}", heads, rows)


def _file(sweep: Sweep) -> str:
    text = (sweep.path / "sweep.toml").read_text(encoding="utf-8")
    return f"<details><summary>sweep.toml</summary><pre>{escape(text)}</pre></details>"


def _figure(drawing: Drawing | None, lacking: str) -> str:
    if drawing is None:
        return f'<p class="missing">{escape(lacking)}</p>'
    caption = f"<figcaption>{escape(drawing.caption)}</figcaption>"
    return f'<figure><div class="plot">{drawing.svg}</div>{caption}</figure>'


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _stats(found: Mapping[str, Any]) -> list[str]:
    return [_number(found["mean"]), _interval(found["ci95"]), _number(found["median"]), str(found["n"])]


def _interval(ci95: Sequence[float] | None) -> str:
    return "\u2013" if ci95 is None else f"{_number(ci95[0])} \u2026 {_number(ci95[1])}"


def _number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.4g}".replace("-", "\u2212")


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "\u2013" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
