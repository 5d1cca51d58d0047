"""Stage ``check``: the teacher is put to the reranking probe.

The result for the shipped teacher ships with the package: it hangs on nothing that a run changes but the precision in
which the teacher computes. ``python -m gecko.stages.check RUN`` writes that of a run there; the run has
``check.shipped=false``, so that its teacher was asked.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gecko.core.errors import RunError
from gecko.core.files import digest, read_json, write_json
from gecko.core.text import difference
from gecko.evaluation import builtin
from gecko.evaluation.teacher import probe
from gecko.llm.local import precision_here
from gecko.run.folder import Run
from gecko.run.shards import build_json
from gecko.stages.context import Context
from gecko.stages.ingest import INGEST
from gecko.stages.stage import Stage, value

FILE = "probe.json"


def make(context: Context) -> dict[str, Any] | None:
    """What the probe says of the teacher; nothing where ``check.enabled`` is off.

    Raises TeacherRefused: it orders the probe worse than the start model.
    """
    config, models = context.config, context.models
    if not CHECK.applies(config):
        return None

    def ask() -> dict[str, Any]:
        known = builtin.probe_results().get(_key(context)) if config.check.shipped else None
        if known is not None:
            gain = difference(known["delta"], (known["low"], known["high"]))
            context.ui.say(
                f"the check of this teacher ships with the package: {gain} nDCG@10 over the start; "
                "--set check.shipped=false asks it"
            )
            return known
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
        return asdict(result)

    result = probe.ProbeResult(**build_json(context.run, CHECK.name, CHECK.parts(context), FILE, ask))
    context.refusing(lambda: probe.refuse_by_probe(result, config.llm))
    return asdict(result)


def _key(context: Context) -> str:
    """What a shipped result is known by: what the stage depends on, less the draws of the interval, and the precision."""
    parts = {
        name: text
        for name, text in CHECK.parts(context).items()
        if name not in ("seed", "resamples", "precision", "asked")
    }
    precision = precision_here(context.config.relabel.precision)
    return digest(precision, *(text for part in sorted(parts.items()) for text in part))


def ship(run: Run) -> str:
    """Write the probe's result of a run among those that ship with the package; its key.

    Raises RunError: the run has none of its own.
    """
    if run.config.check.shipped:
        raise RunError(f"{run.path}: its check may be the shipped one; make it anew with --set check.shipped=false")
    run.finished(CHECK.name)
    key = _key(Context(run))
    result = read_json(run.path / CHECK.name / FILE) | {"seconds": 0.0, "tokens": 0, "cached": True}
    write_shipped(builtin.probe_results() | {key: result})
    return key


def write_shipped(results: dict[str, dict[str, Any]]) -> None:
    """Write the results that ship, into the package itself."""
    write_json(Path(builtin.__file__).parent / "data" / builtin.PROBE_RESULTS, results)


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
        **({} if context.config.check.shipped else {"asked": "yes"}),
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


if __name__ == "__main__":
    with Run(Path(sys.argv[1])) as given:
        print(ship(given))
