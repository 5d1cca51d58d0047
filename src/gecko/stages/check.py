"""Stage ``check``: the teacher is put to the reranking probe."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gecko.core.files import read_json, write_json
from gecko.evaluation import builtin
from gecko.evaluation.teacher import probe
from gecko.run.shards import build_file
from gecko.stages.context import Context
from gecko.stages.ingest import INGEST
from gecko.stages.stage import Stage, value

FILE = "probe.json"


def make(context: Context) -> dict[str, Any] | None:
    """What the probe says of the teacher; nothing where ``check.enabled`` is off.

    Raises:
        TeacherRefused: it orders the probe worse than the start model.
    """
    config, models = context.config, context.models
    if not CHECK.applies(config):
        return None

    def ask(path: Path) -> None:
        roles = context.form.roles  # of one prompt or two
        result = probe.run_probe(
            models.teacher,
            context.prompts[roles[0]],
            context.prompts[roles[-1]],
            models.start,
            passage_tokens=config.relabel.passage_tokens,
            precision=config.relabel.precision,
            resamples=config.evaluate.resamples,
            seed=config.seed,
            ui=context.ui,
            judging=context.form.name,
            window=config.relabel.window,
        )
        write_json(path, asdict(result))

    file = build_file(context.run, CHECK.name, CHECK.parts(context), FILE, ask)
    result = probe.ProbeResult(**read_json(file))
    context.refusing(lambda: probe.refuse_by_probe(result, config.llm))
    return asdict(result)


def cost(context: Context, unit: str) -> float:
    """What the probe has taken from the budget, in ``seconds`` or ``tokens``."""
    file = context.run.path / CHECK.name / FILE
    return float(read_json(file)[unit]) if file.exists() else 0.0


def _depends(context: Context) -> dict[str, str]:
    return {
        **context.judging_parts(context.form),
        "start model": context.models.start_identity,
        "probe": builtin.data_hash("probe.jsonl"),
        **context.precision_parts,
    }


CHECK = Stage(
    name="check",
    version=1,
    make=make,
    settings={
        "passage tokens": value("relabel.passage_tokens"),
        "resamples": value("evaluate.resamples"),
        "seed": value("seed"),
    },
    depends=_depends,
    after=(INGEST,),
    made="on the way",
    command="generate",
    applies=lambda config: config.check.enabled,
)
