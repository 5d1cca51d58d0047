"""Small runs whose fingerprints are kept: one for each way in which the parts of a stage can differ."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.config.stages import RelabelConfig
from gecko.core.files import digest
from gecko.core.progress import Ui
from gecko.encoder import model_identity
from gecko.fret.release import release_identity
from gecko.llm import registry
from gecko.llm.base import Group
from gecko.llm.fake import FakeLM
from gecko.prompts import Prompt
from gecko.run.folder import Run

SMALL = (
    "generate.queries=12",
    "generate.min_seed_chars=10",
    "generate.neighbourhood=4",
    "generate.heldout=0.25",
    "mine.n=4",
    "select.min_rc=null",
    "train.batch=8",
    "train.max_tokens=32",
    "evaluate.resamples=100",
)
# What the default preset was when the golden file was written; a new default changes no fingerprint of a run that has this.
FORMER_DEFAULT = ("corpus.chunk_tokens=null", "lexical.sentences=0")
SCENARIOS: dict[str, tuple[str, ...]] = {
    "default": (),
    "budget": ("budget=100000tok", "generate.variables={}", "relabel.precision=full"),
    "paper": ("preset=paper",),
    "two teachers": ('relabel.teachers=["second"]', 'train.formats=["native"]'),
    "user queries": ('asked.sources=["log.txt"]', 'train.formats=["native"]'),
    "released rows": ('select.released=["release"]', 'train.formats=["native"]'),
    "mixture": ('train.formats=["unified"]', "train.patience=2", "train.measure_steps=5"),
}
KEPT = ('relabel.teachers=["second"]', 'asked.sources=["log.txt"]')  # and a mixture: the run of golden/kept
MIXTURE: dict[str, Any] = {
    "sets": [
        {"name": "faq", "kind": "pairs", "source": "faq.jsonl", "relabel": True},
        {"name": "moods", "kind": "classification", "source": "moods.jsonl", "weight": 2.0},
    ],
    "sampling_temperature": 2.0,
}
TEXT = """
river stone bread light engine garden winter copper signal market forest bottle school violin harbour pepper
saddle thunder meadow pencil carpet bridge candle orchard compass hammer lantern pillow ribbon tunnel walnut
"""


class Second(FakeLM):
    """Another teacher, with another opinion."""

    name, identity = "second", "second-1"

    def score(self, prompt: Prompt, groups: Sequence[Group]) -> list[list[tuple[float, int]]]:
        return [
            [(-1.0 - int(digest(group.passage, query)[:4], 16) / 65536, 1) for query in group.queries]
            for group in groups
        ]


TEACHERS: dict[str, type[FakeLM]] = {"fake": FakeLM, "second": Second}


def use_teachers(patch: pytest.MonkeyPatch, made: Callable[[str], FakeLM] | None = None) -> None:
    """Let ``fake`` and ``second`` be teachers; ``made`` gives the one of a name when it is loaded."""

    def load_teacher(spec: str, config: RelabelConfig, ui: Ui) -> FakeLM:
        return made(spec) if made else TEACHERS[spec]()

    patch.setattr(registry, "load_teacher", load_teacher)
    patch.setattr(registry, "teacher_identity", lambda spec: TEACHERS[spec].identity)


def write_sources(folder: Path) -> None:
    """A corpus, a log and two sets of pairs, always the same."""
    words = TEXT.split()
    chosen = [[words[(n * 7 + k * (1 + n % 5)) % len(words)] for k in range(12)] for n in range(40)]

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(
        "corpus.jsonl",
        [{"_id": f"p{n}", "title": some[0], "text": f"passage {n} " + " ".join(some)} for n, some in enumerate(chosen)],
    )
    write("faq.jsonl", [{"query": f"what of {some[1]}", "text": " ".join(some[:9])} for some in chosen[:8]])
    write("moods.jsonl", [{"text": f"{some[2]} {some[3]} {n}", "label": n % 2} for n, some in enumerate(chosen[:16])])
    asked = [f"who has the {words[n]} and the {words[(n * 11 + 3) % 30]}?" for n in range(20)]
    (folder / "log.txt").write_text("\n".join(asked) + "\n")


def settings(name: str, *more: str) -> RunConfig:
    """The settings of a scenario, for a working folder with the sources and a start model named ``model``."""
    base: dict[str, Any] = {"corpus": {"sources": ["corpus.jsonl"]}, "llm": "fake", "backbone": "model"}
    if name in ("mixture", "kept"):
        base["mixture"] = MIXTURE
    return load_config(None, (*SMALL, *FORMER_DEFAULT, *(KEPT if name == "kept" else SCENARIOS[name]), *more), base)


def stages(run: Path) -> list[str]:
    """The stages of a run that have a manifest."""
    return sorted(path.parent.name for path in run.glob("*/manifest.json"))


# What hangs on the numbers of the start model, and so on the processor; what it stands for is in the kept run.
FROM_NUMBERS = {"seeds", "queries kept", "texts", "agreement", "mixture"}


def fingerprints(path: Path, start: str) -> dict[str, dict[str, Any]]:
    """Of each stage of a run its parts, with names in the place of other stages' identities, and their fingerprint."""
    found = {}
    with Run(path) as run:
        manifests = {stage: run.finished(stage) for stage in stages(path)}
        names = {manifest.identity: f"<{stage}>" for stage, manifest in manifests.items()} | {start: "<start model>"}
        scores = [manifests[stage].identity for stage in ("relabel", "relabel-2") if stage in manifests]
        names.setdefault(digest(*scores), "<both teachers' scores>")
        if released := run.config.select.released:
            names[digest(*map(release_identity, released))] = "<released>"
        if (warm := path / "warmup" / "model").exists():
            names[model_identity(str(warm))] = "<warm model>"
        for stage, manifest in manifests.items():
            texts = [text for item in sorted(manifest.parts.items()) for text in item]
            assert manifest.fingerprint == digest(stage, *texts), stage
            parts = {
                key: "<from numbers>" if key in FROM_NUMBERS else names.get(value, value)
                for key, value in sorted(manifest.parts.items())
            }
            fingerprint = digest(stage, *(text for item in parts.items() for text in item))
            found[stage] = {"parts": parts, "fingerprint": fingerprint}
    return found
