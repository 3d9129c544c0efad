"""The HTML report: one self-contained file. Sections say what they lack instead of vanishing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from seqrl_ray.report import conditioning, learning, phases, system, traffic
from seqrl_ray.report.css import stylesheet
from seqrl_ray.report.run_folder import POLICY, RunFolder
from seqrl_ray.report.style import Drawing
from seqrl_ray.report.tables import FAILURE_HEADS, ControllerRow, controller_rows, failure_rows, other_metrics
from seqrl_ray.report.wording import best_note, comparisons, facts, headline, judged, warnings

Section = tuple[str, str, str]
"""Anchor, title, HTML."""


def render(run: RunFolder) -> str:
    """The whole page."""
    name = escape(str(run.recipe.get("name") or run.path.name))
    sections = _sections(run)
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{content}</section>'
        for anchor, title, content in sections
    )
    status = escape(str(run.summary.get("status", "status unknown")))
    claims = "".join(f"<p>{escape(sentence)}</p>" for sentence in comparisons(run))
    alarms = "".join(f"<li>{escape(warning)}</li>" for warning in warnings(run))
    about = escape(str(run.recipe.get("description") or ""))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} \u2013 seqrl-ray report</title><style>{stylesheet()}</style></head><body><main>"
        f'<header><p class="kicker">seqrl-ray run report <span class="badge">{status}</span></p>'
        f"<h1>{name}</h1>"
        f"{f'<p class=about>{about}</p>' if about else ''}"
        f'<div class="headline"><p class="lead">{escape(headline(run))}</p>{claims}</div>'
        f"{f'<ul class=alarms>{alarms}</ul>' if alarms else ''}</header>"
        f'<nav aria-label="Sections">{links}</nav>{body}</main></body></html>\n'
    )


def _sections(run: RunFolder) -> list[Section]:
    sections = [
        ("run", "The run", _facts(run)),
        ("controllers", "Controllers", _controllers(run)),
        (
            "learning",
            "Learning curve",
            _figure(learning.learning_curve(run), "metrics.jsonl holds no episodes."),
        ),
        ("seeds", "Seed by seed", _figure(learning.seed_by_seed(run), _missing(run, "evaluation/*.json"))),
    ]
    if run.targets:
        drawing = conditioning.conditioning(run)
        sections.append(("targets", "Return asked for", _figure(drawing, "summary.json holds no return.")))
    if run.details or run.recipe.get("env", {}).get("kind") == "traffic":
        sections += _traffic(run)
    rates = _figure(system.rates(run), "metrics.jsonl holds no report rows.")
    learner = system.learner_metrics(run)
    sections.append(("system", "Rates, lag and pacing", rates + (_figure(learner, "") if learner else "")))
    sections.append(("failures", "Failures", _failures(run)))
    sections.append(("recipe", "Recipe and versions", _recipe(run)))
    return sections


def _traffic(run: RunFolder) -> list[Section]:
    lacking = _missing(run, "evaluation/<controller>-details.npz")
    series = [traffic.totals(run), *(traffic.per_signal(run, name) for name in traffic.SERIES)]
    diagrams = [phases.phases(run, excerpt=True), phases.phases(run, excerpt=False)]
    absent = [name for name in (POLICY, "fixed") if run.details and name not in run.details]
    note = f'<p class="missing">No episode of {" and of ".join(absent)} was recorded.</p>' if absent else ""
    return [
        ("signals", "Queue and delay per signal", note + _figures(series, lacking)),
        ("phases", "Phases", note + _figures(diagrams, lacking)),
        ("trips", "Delay of trips", _figure(traffic.trip_delay(run), lacking)),
    ]


def _missing(run: RunFolder, file: str) -> str:
    return f"{file} is missing or lacks what this figure shows; `seqrl evaluate {run.path.name}` writes it."


def _figures(drawings: Sequence[Drawing | None], lacking: str) -> str:
    present = [drawing for drawing in drawings if drawing is not None]
    return "".join(_figure(drawing, lacking) for drawing in present) or _figure(None, lacking)


def _figure(drawing: Drawing | None, lacking: str) -> str:
    if drawing is None:
        return f'<p class="missing">{escape(lacking)}</p>'
    title = f"<h3>{escape(drawing.title)}</h3>" if drawing.title else ""
    caption = f"<figcaption>{escape(drawing.caption)}</figcaption>"
    return f'<figure>{title}<div class="plot">{drawing.svg}</div>{caption}</figure>'


def _facts(run: RunFolder) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(run)
    )
    return (
        f'<dl class="facts">{tiles}</dl>'
        if tiles
        else '<p class="missing">recipe.toml and summary.json are missing.</p>'
    )


def _controllers(run: RunFolder) -> str:
    rows = controller_rows(run)
    if not rows:
        return '<p class="missing">summary.json holds no evaluation and no baselines.</p>'
    fields = {
        "mean": "mean",
        "95 % interval": "ci95",
        "median": "median",
        "p95": "p95",
        "seeds": "n",
        "gridlocked": "gridlocked",
        "safety violations": "safety_violations",
        "\u00d7 fixed": "to_fixed",
        "policy \u2212 this": "difference",
        "95 % interval ": "difference_ci95",
        "policy is": "verdict",
    }
    shown = {
        head: f for head, f in fields.items() if any(getattr(row, f) not in ("", "\u2013") for row in rows)
    }
    metric = judged(run)
    order = "lower is better" if metric.better < 0 else "higher is better"
    body = "".join(_controller(row, list(shown.values())) for row in rows)
    table = (
        f'<div class="scroll"><table><caption>{escape(metric.title)}, {order}</caption>'
        f"<thead>{_head(['controller', *shown])}</thead><tbody>{body}</tbody></table></div>"
        '<p class="note">Mean, median and 95th percentile are over seeds. \u201cPolicy is\u201d better '
        "or worse only where the 95 % interval of the difference on the same seeds excludes 0, else unclear; "
        "intervals are not adjusted for the number of comparisons.</p>"
    )
    if note := best_note(run):
        table += f'<p class="note">{escape(note)}</p>'
    heads, others = other_metrics(run)
    if others:
        cells = "".join(_plain_row(row) for row in others)
        table += (
            '<div class="scroll"><table><caption>All other metrics</caption>'
            f"<thead>{_head(heads)}</thead><tbody>{cells}</tbody></table></div>"
        )
    return table


def _controller(row: ControllerRow, fields: list[str]) -> str:
    kind = row.verdict if row.verdict in ("better", "worse") else ""
    cells = "".join(
        f'<td class="{kind}">{escape(getattr(row, f))}</td>'
        if f == "verdict"
        else f"<td>{escape(getattr(row, f))}</td>"
        for f in fields
    )
    swatch = (
        f'<i class="swatch" style="background:var(--{escape(row.name.replace("_", "-"))},var(--muted))"></i>'
    )
    mark = ' class="policy"' if row.name == POLICY else ""
    return f'<tr{mark}><th scope="row">{swatch}{escape(row.name)}</th>{cells}</tr>'


def _head(heads: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr>"


def _plain_row(cells: Sequence[str]) -> str:
    return (
        f'<tr><th scope="row">{escape(cells[0])}</th>'
        + "".join(f"<td>{escape(c)}</td>" for c in cells[1:])
        + "</tr>"
    )


def _failures(run: RunFolder) -> str:
    rows = failure_rows(run)
    if not rows:
        return (
            "<p>Nothing died.</p>"
            if run.summary or run.reports
            else '<p class="missing">Nothing is recorded.</p>'
        )
    body = "".join(_plain_row(row) for row in rows)
    heads = _head(FAILURE_HEADS)
    return f'<div class="scroll"><table><thead>{heads}</thead><tbody>{body}</tbody></table></div>'


def _recipe(run: RunFolder) -> str:
    versions = run.summary.get("versions") or {}
    parts = []
    file = run.path / "recipe.toml"
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        parts.append(f"<details><summary>recipe.toml</summary><pre>{escape(text)}</pre></details>")
    if versions:
        lines = "\n".join(f"{name} {value}" for name, value in versions.items())
        parts.append(f"<details><summary>versions</summary><pre>{escape(lines)}</pre></details>")
    return "".join(parts) or '<p class="missing">recipe.toml is missing.</p>'
