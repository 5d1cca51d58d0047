"""The cards of a run's model and of its rows, as model hubs read them: YAML at the head, Markdown below.

A card names no path of the machine it was made on, and quotes only one row.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gecko.config.run import RunConfig
from gecko.core.files import read_json
from gecko.corpus.sources import SQL_SCHEMES
from gecko.fret.release import COLUMNS
from gecko.fret.view import RunView, judged_form
from gecko.report.table import asked_rows, closing_rows, origins
from gecko.report.text import shown, templates

UNKNOWN = "unknown"
# Of what a fresh installation works with: the documentation, the teachers and the start models.
LICENSES = {
    "stdlib": "psf-2.0",
    "default": "apache-2.0",
    "default-small": "apache-2.0",
    "smollm2": "apache-2.0",
    "minilm": "apache-2.0",
}
HUB_NAMES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
NOT_ON_THE_HUBS_LIST = {"psf-2.0"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def public_name(spec: str) -> str:
    """A model or corpus as the world may read it: no address, no query, and of a path only the last part."""
    if scheme := next((name for name in SQL_SCHEMES if spec.startswith(name)), None):
        return f"an SQL query ({scheme.removesuffix(':')})"
    if spec.startswith("openai:"):
        return f"openai:{spec.partition('#')[2]}"
    kind, colon, rest = spec.rpartition(":") if spec.startswith(("hf:", "gguf:", "vllm:")) else ("", "", spec)
    on_hub = kind in ("hf", "vllm") and not rest.startswith((".", "~", "/")) and not Path(rest).expanduser().exists()
    is_path = not on_hub and (rest.startswith((".", "~")) or "/" in rest or Path(rest).expanduser().exists())
    return f"{kind}{colon}{Path(rest).name if is_path else rest}"


def licenses(config: RunConfig) -> dict[str, str]:
    """What is known of the licences, by what they are of: ``corpus``, ``teacher``, ``start model``."""
    card = config.card
    of_corpus = {LICENSES.get(source, UNKNOWN) for source in config.corpus.sources}
    return {
        "corpus": card.corpus_license or (of_corpus.pop() if len(of_corpus) == 1 else UNKNOWN),
        "teacher": card.teacher_license or LICENSES.get(config.llm, UNKNOWN),
        "start model": card.start_license or LICENSES.get(_trained_from(config), UNKNOWN),
    }


def _trained_from(config: RunConfig) -> str:
    return config.student or config.backbone


def _license_fields(name: str) -> dict[str, Any]:
    if name in NOT_ON_THE_HUBS_LIST:
        return {"license": "other", "license_name": name}
    return {"license": name}


def model_card(view: RunView, form: str, result: Mapping[str, Any] | None) -> str:
    """The card of ``RUN/model``: of ``form``, the input format that was kept, and what ``evaluate`` measured, if anything."""
    from huggingface_hub import EvalResult, ModelCardData

    from gecko.training.schedule import enough_steps

    config = view.config
    start = _trained_from(config)
    name = config.card.title or f"{public_name(start).rpartition(':')[2].rpartition('/')[2]}-gecko"
    trained = read_json(view.run.path / f"train-{form}" / "training.json")
    measured = [
        EvalResult(
            task_type="retrieval",
            dataset_type=set_name,
            dataset_name=set_name,
            metric_type="ndcg_at_10",
            metric_name="nDCG@10",
            metric_value=round(entry["measures"]["ndcg@10"][form]["mean"], 4),
        )
        for set_name, entry in (result["sets"].items() if result else ())
    ]
    base = HUB_NAMES.get(start) or (start[3:] if start.startswith("hf:") and public_name(start) == start else None)
    allowed = licenses(config)
    data = ModelCardData(
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "gecko"],
        model_name=name,
        eval_results=measured or None,
        **_license_fields(allowed["start model"]),
    )
    selected = view.run.finished("select")
    own, released = origins(selected)
    asked = asked_rows(selected)
    return _render(
        "model_card.md.j2",
        data,
        name=name,
        config=config,
        start=public_name(start),
        miner=public_name(config.backbone),
        settings=enough_steps(config.train, trained["rows"]),
        steps=trained["steps"],
        sets=[(entry.name, entry.kind) for entry in config.mixture.sets],
        teacher=public_name(config.llm),
        judged=judged_form(view.run).name,
        corpus=[public_name(source) for source in config.corpus.sources],
        passages=len(view.passages),
        own=own - asked,
        asked=asked,
        released={public_name(spec): count for spec, count in released.items()},
        form=form,
        table=closing_rows(result) if result else [],
        licenses=allowed,
        taught=_taught(view),
    )


def _taught(view: RunView) -> float:
    """The weight with which the start model learned BM25's order before the rows; 0: it did not."""
    taught = view.run.taught
    return float(read_json(taught.parent / "choice.json")["weight"]) if taught else 0.0


def dataset_card(rows: Sequence[Mapping[str, Any]], config: RunConfig, prompts: Mapping[str, str]) -> str:
    """The card of a release: rows of ``gecko.fret.release.SCHEMA``, by the run of ``config``, or the first of several.

    ``prompts`` has the hash of each of its prompts by name.
    """
    from huggingface_hub import DatasetCardData

    allowed = licenses(config)
    title = config.card.title or "FRet rows"
    asked = sum(not row["seed_id"] for row in rows)
    data = DatasetCardData(
        pretty_name=title,
        task_categories=["text-retrieval", "sentence-similarity"],
        language_creators=["machine-generated", *(["found"] if asked else [])],
        annotations_creators=["machine-generated"],
        size_categories=next((text for size, text in SIZES if len(rows) < size), "n>1M"),
        tags=["gecko", "synthetic", "retrieval"],
        configs=[{"config_name": "default", "data_files": "fret.parquet"}],
        **_license_fields(allowed["corpus"]),
    )
    pairs = [entry for row in rows for entry in row["candidates"]]
    return _render(
        "dataset_card.md.j2",
        data,
        title=title,
        config=config,
        rows=len(rows),
        splits=Counter(row["split"] for row in rows),
        pairs=len(pairs),
        passages=len({entry["passage_id"] for entry in pairs}),
        tasks=Counter(row["task"] for row in rows),
        asked=asked,
        writers=sorted({row["llm"] for row in rows if row["llm"]}) or [public_name(config.llm)],
        teachers=sorted({row["teacher"] for row in rows}),
        judged=_judged(pairs),
        prompt_hashes=sorted({row["prompt_hash"] for row in rows}),
        prompts=prompts,
        columns=COLUMNS,
        example=_example(rows[0]) if rows else "",
        corpus=[public_name(source) for source in config.corpus.sources],
        start=public_name(config.backbone),
        licenses=allowed,
    )


def _judged(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The forms in which pairs of a release were judged."""
    marks = {"logprobs": "rc", "graded": "grade", "listwise": "first"}
    return [form for form, name in marks.items() if any(entry.get(name) is not None for entry in pairs)]


def _example(row: Mapping[str, Any]) -> str:
    """The first row with two of its candidates, as JSON that no fence can be broken out of."""
    short = {**row, "candidates": [dict(entry) for entry in row["candidates"][:2]]}
    return json.dumps(short, indent=1, ensure_ascii=False).replace("`", "'")


def _render(template: str, data: Any, **values: Any) -> str:
    environment = templates(keep_trailing_newline=True)
    environment.filters["plain"] = _plain
    return f"---\n{data.to_yaml()}\n---\n\n" + environment.get_template(template).render(**values)


def _plain(text: str) -> str:
    """Foreign text in a line or a cell of Markdown: nothing in it acts."""
    flat = " ".join(shown(text).split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#!" else letter for letter in flat)
