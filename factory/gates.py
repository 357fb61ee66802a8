"""Gates: what a later model must reach against the first one, for a job that nobody watches.

A requirement, `[MODEL:MODE] METRIC +GAIN [on SET]`, is met if the measured difference is at least GAIN and its whole
95 % interval lies above zero: as large as was asked for, and not by chance. GAIN may be negative or 0: then the
interval's lower end must be at least GAIN, "at most so much worse".

A limit on regression, `SET=-LOSS`, holds if the measured difference of the headline metric is not below it. It asks for
no certainty, which a general set of a few hundred questions could not give at one point; an interval that reaches
further down is remarked on. `strict` asks for certainty everywhere: the interval's lower end decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory import metrics
from factory.errors import InputError
from factory.evaluation import Change, Evaluation, GateResult

if TYPE_CHECKING:
    from rich.table import Table

_REQUIREMENT = re.compile(
    r"(?:(?P<model>[^\s:]+):(?P<mode>\S+)\s+)?(?P<metric>[a-z_]+@\d+)\s*(?:>=\s*)?(?P<gain>[+-]\d*\.?\d+)(?:\s+on\s+(?P<set>.+))?"
)
_LIMIT = re.compile(r"(?P<set>.+?)\s*=\s*(?P<loss>-?\d*\.?\d+)")


@dataclass(frozen=True)
class Gate:
    """What is wanted; None stands for every later model, and for the first set.

    Attributes:
        metric: empty for the headline metric.
        change: the least difference; 0.05 is five points.
    """

    text: str
    change: float
    metric: str = ""
    model: str | None = None
    mode: str = "dense"
    eval_set: str | None = None
    is_limit: bool = False

    @property
    def where(self) -> str:
        return f"{'--forbid-regression' if self.is_limit else '--require'} {self.text!r}"


def requirement(text: str) -> Gate:
    """`--require`'s text as a gate.

    Raises:
        InputError: it does not read like one, or asks for five hundred points.
    """
    m = _REQUIREMENT.fullmatch(text.strip())
    if not m:
        raise InputError(
            f"expected [MODEL:MODE] METRIC +GAIN [on SET], got {text!r}",
            where="--require",
            fix='"ndcg@10 +0.05", "tuned:dense+BM25 recall@10 +0.02 on cjrc"',
        )
    gain = _share(m["gain"], "--require")
    return Gate(text, gain, m["metric"], m["model"], m["mode"] or "dense", m["set"] and m["set"].strip())


def limit(text: str) -> Gate:
    """`--forbid-regression`'s text as a gate.

    Raises:
        InputError: it does not read like one.
    """
    m = _LIMIT.fullmatch(text.strip())
    if not m:
        raise InputError(
            f"expected SET=-LOSS, got {text!r}",
            where="--forbid-regression",
            fix="general=-0.01: at most one point lost",
        )
    return Gate(text, -abs(_share(m["loss"], "--forbid-regression")), eval_set=m["set"], is_limit=True)


def _share(text: str, where: str) -> float:
    value = float(text)
    if abs(value) > 1:
        raise InputError(f"differences are between -1 and 1, got {text}", where=where, fix="five points are 0.05")
    return value


def check(gates: Sequence[Gate], sets: Sequence[str], models: Sequence[str], cutoffs: Sequence[int]) -> None:
    """See, before hours of work, that what the gates name is going to be measured.

    Raises:
        InputError: a gate names a set, a model or a metric that is not; there is no later model.
    """
    measured = metrics.names(cutoffs)
    for gate in gates:
        if len(models) < 2:
            raise InputError("there is no model to compare with the first one", where=gate.where, fix="--model twice")
        for what, name, names in (
            ("eval set", gate.eval_set, sets),
            ("later model", gate.model, models[1:]),
            ("metric", gate.metric or None, measured),
        ):
            if name is not None and name not in names:
                fix = "--cutoffs with the k of the gate" if what == "metric" else None
                raise InputError(f"no {what} is called {name!r}, only {', '.join(names)}", where=gate.where, fix=fix)


def judge(gates: Sequence[Gate], done: Sequence[Evaluation], *, strict: bool = False) -> list[GateResult]:
    """Each gate's verdict for each model that it is about; `check` has passed them.

    Raises:
        InputError: a gate names a mode that the model and the first one do not both have.
    """
    results = []
    for gate in gates:
        e = next(e for e in done if gate.eval_set in (None, e.name))
        metric = gate.metric or e.metric
        for model in [gate.model] if gate.model is not None else list(e.models)[1:]:
            modes = {d.mode: d for d in e.differences if d.model == model}
            if gate.mode not in modes:
                what = f"{model} was not compared in mode {gate.mode!r}, only {', '.join(modes)}"
                raise InputError(what, where=gate.where)
            d, change = modes[gate.mode], modes[gate.mode].metrics[metric]
            passed, wanted, remark = verdict(gate, change, strict)
            results.append(
                GateResult(
                    gate=gate.text,
                    eval_set=e.name,
                    model=model,
                    base=d.base,
                    mode=gate.mode,
                    metric=metric,
                    wanted=wanted,
                    got=change.value,
                    low=change.low,
                    high=change.high,
                    p=change.p,
                    passed=passed,
                    remark=remark,
                )
            )
    return results


def verdict(gate: Gate, change: Change, strict: bool = False) -> tuple[bool, str, str]:
    """(passed, what was wanted in words, a remark)."""
    least = f"{100 * gate.change:+.1f}"
    reaches = f"the interval reaches {100 * change.low:+.1f}"
    if strict or (not gate.is_limit and gate.change <= 0):
        passed = change.low >= gate.change
        return passed, f"surely {least} or more", "" if passed else reaches
    if gate.is_limit:
        passed = change.value >= gate.change
        remark = reaches if change.low < gate.change else ""
        return passed, f"no worse than {least}", remark
    enough, sure = change.value >= gate.change, change.low > 0
    remark = f"could be chance: {reaches}" if not sure else "" if enough else "less than was asked for"
    return enough and sure, f"{least} or more, interval above 0", remark


def render(results: Sequence[GateResult]) -> Table:
    """A rich table: what was wanted, what was measured, the verdict."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="gates", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("gate", "set", "system", "wanted", "got, points", "verdict"):
        table.add_column(name, overflow="fold")
    for r in results:
        got = f"{100 * r.got:+.1f} [{100 * r.low:+.1f}, {100 * r.high:+.1f}]"
        said = Text("passed" if r.passed else "FAILED", style="green" if r.passed else "bold red")
        if r.remark:
            said.append(f": {r.remark}", style="not bold default")
        system = f"{r.model} − {r.base}, {r.mode}"
        table.add_row(Text(r.gate), Text(r.eval_set), Text(system), f"{r.metric} {r.wanted}", got, said)
    return table
