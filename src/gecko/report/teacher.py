"""What a teacher is worth, for people: tables for the terminal and for Markdown, and the verdict in sentences.

Input is what ``gecko.evaluation.teacher.value.teacher_value`` returns, on 0–1; output is in points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gecko.core.text import difference, duration, points
from gecko.evaluation.evaluate import HEADLINE
from gecko.evaluation.teacher.answers import IN_WORDS, prompt_names
from gecko.report.text import markdown_table


def value_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The result as a table, the header first; nDCG@10 in points."""
    rows: list[tuple[str, ...]] = [("form", "set (queries)", "order", "nDCG@10", "difference to retriever (95 %)")]
    for form, numbers in result["forms"].items():
        sets = dict(numbers["sets"]) | ({"macro mean": numbers["macro"]} if "macro" in numbers else {})
        for name, row in sets.items():
            for order, cell in row.items():
                if not isinstance(cell, dict):
                    continue
                rows.append((form, f"{name} ({row['queries']})", order, points(cell[HEADLINE]), _delta(cell)))
    return rows


def _delta(cell: Mapping[str, Any]) -> str:
    return "" if cell["delta"] is None else difference(cell["delta"], cell["ci95"])


def _over(row: Sequence[float]) -> str:
    return difference(row[0], row[1:])


def value_verdict(result: Mapping[str, Any]) -> str:
    """What the teacher is worth, what to set, and what a run would cost, in sentences."""
    best, estimate = result["best"], result["estimate"]
    where = f"{best['queries']} queries" + (f" of {best['sets']} sets" if best["sets"] > 1 else "")
    lines = [f"{result['teacher']}: {_delta(best)} nDCG@10 over the start model on {where}; {best['verdict']}"]
    lines.append(f"best form: {best['form']}, fusion {best['fusion']} ({_settings(best)})")
    if over := result["forms"][best["form"]].get("over_first"):
        lines.append(f"against the first form, {next(iter(result['forms']))}: {_over(over)}")
    if over := result["forms"][best["form"]].get("rrf_over"):
        lines.append("the fusion over its parts: " + ", ".join(f"{name} {_over(over[name])}" for name in over))
    judging, writing = estimate["judging"], estimate["writing"]
    parts = [f"judging {judging['tokens']:,} tokens, {duration(judging['seconds'])}"]
    if writing is not None:
        parts.insert(0, f"writing {writing['tokens']:,} tokens, {duration(writing['seconds'])}")
    lines.append(
        f"a run of {estimate['queries']:,} queries with {estimate['candidates']} candidates on this machine, at most: "
        f"{'; '.join(parts)}"
    )
    return "\n".join(lines)


def _settings(best: Mapping[str, Any]) -> str:
    """What a run must be told to judge in the best form."""
    judging, colon, file = best["form"].partition(":")
    if judging in IN_WORDS:
        return f"--set relabel.judge={judging}" + (f" --set prompts.{judging}={file}" if colon else "")
    likelihood, relevance = prompt_names(best["form"])
    return (
        f"--set prompts.query_likelihood={likelihood} --set prompts.relevance={relevance} "
        f"--set select.fusion={best['fusion']}"
    )


def value_markdown(result: Mapping[str, Any]) -> str:
    """The result as Markdown: a row a form with the means over the sets, then all of it, then the verdict."""
    settings = result["settings"]
    sets = next(iter(result["forms"].values()))["sets"]
    measured = ", ".join(f"{name}@{row['split']} ({row['queries']:,} queries)" for name, row in sets.items())
    said = (
        f"{result['teacher']} against {settings['backbone']}, first {result['candidates']} passages; {measured}; seed "
        f"{settings['seed']}, paired 95 % intervals of {settings['resamples']:,} resamples; nDCG@10 in points."
    )
    parts = [said, markdown_table(form_rows(result)), markdown_table(value_rows(result)), value_verdict(result)]
    return "\n\n".join(parts) + "\n"


def form_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a form, the header first: the means over the sets of every order, and what RRF (or RC) differs by."""
    means = {
        form: numbers.get("macro") or next(iter(numbers["sets"].values())) for form, numbers in result["forms"].items()
    }
    orders = list(dict.fromkeys(key for row in means.values() for key, cell in row.items() if isinstance(cell, dict)))
    usual = {form: "rrf" if "rrf" in row else "rc" for form, row in means.items()}
    called = " or ".join(dict.fromkeys(usual.values()))
    differences = [f"{called} − retriever (95 %)", *([f"{called} − the first form's"] if len(means) > 1 else [])]
    rows: list[tuple[str, ...]] = [("form", *orders, *differences, "tokens a pair")]
    for form, row in means.items():
        numbers = result["forms"][form]
        values = (points(row[order][HEADLINE] if order in row else None) for order in orders)
        against = [_over(numbers["over_first"]) if "over_first" in numbers else ""] if len(means) > 1 else []
        rows.append((form, *values, _delta(row[usual[form]]), *against, f"{numbers['tokens_per_pair']:.0f}"))
    return rows
