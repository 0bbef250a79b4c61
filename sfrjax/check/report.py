"""What a check found, on the screen and as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from sfrjax.check.cost import Cost

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
SEVERITIES = tuple(STYLES)
# Files named on the screen for each finding; JSON names all.
SHOWN = 5


class Item(NamedTuple):
    """A file that a finding is about, and what there is to say of this one ("" where the finding says it all)."""

    path: Path
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of thing found: severity "error" (fit or evaluate would refuse), "warning" or "note"."""

    severity: str
    kind: str
    message: str
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found in one category.

    Attributes:
        name: of the category; "" for plain images.
        nominal, test_good, test_anomalous: numbers of images.
        findings: errors first.
        cost: of fit; None where there is nothing to fit.
    """

    name: str
    nominal: int
    test_good: int
    test_anomalous: int
    findings: tuple[Finding, ...]
    cost: Cost | None

    @property
    def ok(self) -> bool:
        """Whether fit (of a data set: evaluate) would work."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        findings = [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "message": finding.message,
                "items": [{"path": str(path), "detail": detail} for path, detail in finding.items],
            }
            for finding in self.findings
        ]
        counts = {"nominal": self.nominal, "test_good": self.test_good, "test_anomalous": self.test_anomalous}
        cost = None if self.cost is None else vars(self.cost)
        return {"category": self.name, "ok": self.ok, **counts, "findings": findings, "fit": cost}


def print_report(report: Report) -> None:
    """Grouped by finding, worst first; of long lists the beginning."""
    console = Console(highlight=False, soft_wrap=True)
    test = f", {report.test_good} good and {report.test_anomalous} defective test images" if report.name else ""
    console.print(Text(f"{report.name or 'Images'}: {report.nominal} nominal{test}", "bold"))
    for finding in report.findings:
        count = f" ({len(finding.items)})" if len(finding.items) > 1 else ""
        heading = Text.assemble("  ", (f"{finding.severity}: ", STYLES[finding.severity]), f"{finding.kind}{count}: ")
        console.print(heading.append(finding.message))
        for path, detail in finding.items[:SHOWN]:
            # A detail that is a sentence names the file itself.
            line = detail if str(path) in detail else f"{path}: {detail}" if detail else str(path)
            console.print(Text(f"      {line}"))
        if len(finding.items) > SHOWN:
            console.print(Text(f"      and {len(finding.items) - SHOWN} more (--json lists all)"))
    if report.cost is not None:
        size, seconds = report.cost.bank_bytes, report.cost.seconds
        console.print(Text(f"  fit: bank of {size / 1e6:.0f} MB, about {seconds:.0f} s ({report.cost.basis})"))
    verdict = "fit would work" if report.ok else "fit would not work"
    if report.name:
        verdict = "evaluate would work" if report.ok else "evaluate would not work"
    console.print(Text(f"  {verdict}", "green" if report.ok else "red"))
