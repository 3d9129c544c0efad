"""What `seqrl doctor` says: one finding per check and machine, each one line with what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["OK", "warning", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: Level
    """OK; warning: it works, and something is worse than it could be; FAIL: it is open, or will not work."""
    check: str
    """One word: versions, auth, ports, ..."""
    text: str
    """What was found; where it is not OK, also the consequence and what to do."""
    where: str = ""
    """Address of the node; empty: this machine, or the cluster as a whole."""

    def line(self) -> str:
        """Return it as people read it."""
        return f"{self.level:<8} {self.check:<10} {self.where + ': ' if self.where else ''}{self.text}"


@dataclass(frozen=True)
class Examination:
    """Everything that was found."""

    lines: tuple[str, ...]
    """What this machine has: for bug reports."""
    findings: tuple[Finding, ...]
    cluster: str | None = None
    """Address of the cluster that was asked; None: only this machine was looked at."""

    @property
    def ok(self) -> bool:
        """Nothing failed; there may be warnings."""
        return all(finding.level != "FAIL" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return {"ok", "cluster", "machine", "findings": [{"level", "check", "text", "where"}]}."""
        found = [asdict(finding) for finding in self.findings]
        return {"ok": self.ok, "cluster": self.cluster, "machine": list(self.lines), "findings": found}

    def report(self) -> list[str]:
        """Return it as lines, the verdict last."""
        counts = {level: sum(f.level == level for f in self.findings) for level in ("warning", "FAIL")}
        looked = f"the cluster at {self.cluster}" if self.cluster else "this machine"
        verdict = f"{looked}: {counts['FAIL']} failed, {counts['warning']} warning(s)."
        if self.cluster is None:
            verdict += " No cluster was looked at; seqrl doctor --address A looks at one."
        return [*self.lines, "", *(finding.line() for finding in self.findings), "", verdict]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings of many nodes with those that say the same put on one line, in the order they came."""
    where: dict[tuple[Level, str, str], list[str]] = {}
    for f in findings:
        where.setdefault((f.level, f.check, f.text), []).append(f.where)
    return [Finding(*key, where=", ".join(w for w in nodes if w)) for key, nodes in where.items()]
