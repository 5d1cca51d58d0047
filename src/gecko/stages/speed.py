"""How fast the teacher reads and writes, for a budget in minutes and for an estimate."""

import time
from collections.abc import Sequence

from gecko.core.errors import TeacherError
from gecko.evaluation.builtin import probe
from gecko.fret.answered import grade_questions
from gecko.fret.relabel import judge
from gecko.llm.answers import Question
from gecko.llm.base import Group, Sampling
from gecko.stages.context import Context

MEASURED_TOKENS = 24  # of each text whose writing is timed
MEASURED_TEXTS = 16  # written at a time on a CPU
TRIALS = 3  # at timing it on a busy machine


def measure(context: Context) -> tuple[float, float, float]:
    """(tokens read a second, tokens written a second, seconds that measuring took).

    Raises TeacherError: the teacher does not say how many tokens it has read.
    """
    with context.models.teacher.asked_anew():
        return _measured(context)


def _measured(context: Context) -> tuple[float, float, float]:
    context.ui.say("measuring the teacher's speed")
    teacher, began = context.models.teacher, time.perf_counter()
    # A GPU is fast with many texts at a time, and has read and written them in a moment.
    topics, most = (probe(), None) if teacher.needs_many else (probe()[:2], 8)
    groups = [
        Group(passage.content, tuple(text for _, text in topic.queries))
        for topic in topics
        for passage in topic.passages
    ][:most]
    _judge(context, groups[:1])  # warm-up, and the preamble
    start, before = time.perf_counter(), teacher.usage.tokens
    _judge(context, groups)
    read_speed = (teacher.usage.tokens - before) / (time.perf_counter() - start)
    if not read_speed:
        raise TeacherError(
            f"{teacher.name} does not say how many tokens it has read, so no budget and no estimate can be worked out; "
            "set generate.queries to a number instead of a budget, and leave --dry-run out"
        )
    at_once = context.config.generate.batch
    if not teacher.needs_many:
        at_once = min(MEASURED_TEXTS, at_once or MEASURED_TEXTS)
    texts = [passage.content for topic in topics for passage in topic.passages][:at_once]
    write_speed = _write_speed(context, texts, read_speed)
    return read_speed, write_speed, time.perf_counter() - began


def _judge(context: Context, groups: Sequence[Group]) -> None:
    """Have pairs judged in the run's form."""
    prompts, teacher = context.prompts, context.models.teacher
    match context.form.name:
        case "logprobs":
            judge(groups, teacher, prompts["likelihood"], prompts["relevance"])
        case "graded":
            asked = [grade_questions(prompts["graded"], group.passage, group.queries) for group in groups]
            teacher.answer(prompts["graded"], [question for some in asked for question in some])
        case "listwise":
            passages = tuple(group.passage for group in groups[: context.config.relabel.window])
            queries = groups[0].queries if len(passages) > 1 else ()
            teacher.answer(prompts["listwise"], [Question("order", passages, (query,)) for query in queries])


def _write_speed(context: Context, texts: Sequence[str], read_speed: float) -> float:
    """Tokens written a second: long texts against short ones of the same prompts, of which each is read alike.

    A token is written by one pass through all weights, which reads one: writing cannot be faster than reading. On a busy
    machine a difference may come out as nothing or less; it is then measured again, and at last what the long texts took
    with all their reading is taken, which is too slow and not too fast.
    """
    teacher = context.models.teacher

    def took(texts: Sequence[str], tokens: int) -> tuple[float, int]:
        before, start = teacher.usage.written, time.perf_counter()
        teacher.generate(context.prompts["generate"], texts, Sampling(0.0, 1.0, tokens, tuple(range(len(texts)))))
        return time.perf_counter() - start, teacher.usage.written - before

    took(texts[:1], 1)  # the preamble is read once and then remembered
    for _ in range(TRIALS):
        long, short = took(texts, MEASURED_TOKENS), took(texts, 1)
        seconds, tokens = long[0] - short[0], long[1] - short[1]
        if tokens <= 0:
            break  # it ends at once, or does not say how much it has written
        if seconds * read_speed >= tokens:
            return tokens / seconds
    slow = long[1] / max(long[0], 1e-6)
    context.ui.say(
        "the time that writing takes could not be told from that of reading; the estimate is on the safe side"
    )
    return min(slow, read_speed) or read_speed
