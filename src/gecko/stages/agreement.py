"""Stage ``agreement``: how far each trained model agrees with the teacher on held-out queries."""

import gecko.encoder
from gecko.encoder import Encoder
from gecko.evaluation.agreement import agreement
from gecko.run.shards import build_json
from gecko.stages.context import Context
from gecko.stages.plan import released_parts
from gecko.stages.relabel import RELABEL
from gecko.stages.select import SELECT
from gecko.stages.stage import Stage
from gecko.stages.train import TRAIN, student_folder


def make(context: Context) -> dict[str, list[float]]:
    """Agreement with the teacher on each held-out query: for ``start`` and each trained format."""
    folders = {form: student_folder(context, form) for form in context.config.train.formats}

    def measure() -> dict[str, list[float]]:
        models: dict[str, Encoder] = {"start": context.models.start}
        models.update({form: gecko.encoder.load_encoder(str(folder)) for form, folder in folders.items()})
        return {
            label: agreement(context.heldout, context.labels, context.by_id, encoder).tolist()
            for label, encoder in models.items()
        }

    return build_json(context.run, AGREEMENT.name, AGREEMENT.parts(context), "agreement.json", measure)


AGREEMENT = Stage(
    name="agreement",
    version=1,
    make=make,
    reads={"scores": RELABEL, "selection": SELECT},
    reads_each=TRAIN,
    depends=lambda context: {"start model": context.models.start_identity, **released_parts(context)},
    command="train",
)
