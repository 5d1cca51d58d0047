import hashlib
import shutil
from pathlib import Path

import pytest

from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError, TeacherError
from gecko.core.files import digest
from gecko.core.progress import Silent
from gecko.llm import local, registry
from gecko.llm.base import Group
from gecko.llm.fake import FakeLM
from gecko.llm.registry import load_teacher, teacher_identity
from gecko.prompts import load_prompt
from gecko.weights import embedded
from gecko.weights import gguf as gguf_files


@pytest.mark.parametrize(
    "spec", ["", "defualt", "hf:", "hf", "gguf:", "gguf", "vlm:name", "Qwen/Qwen2.5", ":x", "fake:"]
)
def test_an_unknown_spec_lists_the_forms(spec: str) -> None:
    for call in (lambda: teacher_identity(spec), lambda: load_teacher(spec, RelabelConfig(), Silent())):
        with pytest.raises(ConfigError) as caught:
            call()
        message = str(caught.value)
        assert repr(spec) in message
        for form in ("default", "default-small", "smollm2", "hf:NAME", "gguf:PATH", "fake"):
            assert form in message


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "no.gguf"
    with pytest.raises(ConfigError, match=f"--llm gguf:{missing}: the file {missing} does not exist"):
        load_teacher(f"gguf:{missing}", RelabelConfig(), Silent())
    with pytest.raises(ConfigError, match="does not exist"):
        teacher_identity(f"gguf:{tmp_path}")  # a folder
    with pytest.raises(ConfigError, match=rf"hf:{tmp_path}: the folder has no config\.json"):
        load_teacher(f"hf:{tmp_path}", RelabelConfig(), Silent())


def test_the_stand_in() -> None:
    teacher = load_teacher("fake", RelabelConfig(), Silent())
    assert isinstance(teacher, FakeLM)
    assert teacher.identity == teacher_identity("fake")


def test_identities_of_the_embedded_are_their_pins() -> None:
    specs = ("default", "default-small", "smollm2")
    identities = [teacher_identity(spec) for spec in specs]
    assert identities == [embedded.EMBEDDED[spec].sha256[:16] for spec in specs]
    assert len(set(identities)) == 3


def test_identity_of_a_file_is_of_its_bytes(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / f"{name}.gguf" for name in ("one", "copy", "other"))
    for path, data in ((one, b"weights"), (copy, b"weights"), (other, b"Weights")):
        path.write_bytes(data)
    assert teacher_identity(f"gguf:{one}") == teacher_identity(f"gguf:{copy}") != teacher_identity(f"gguf:{other}")


def test_identity_of_a_folder_follows_what_answers_depend_on(tiny_qwen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen, folder)
    first = teacher_identity(f"hf:{folder}")
    assert first == teacher_identity(f"hf:{tiny_qwen}")
    (folder / "README.md").write_text("words")
    assert teacher_identity(f"hf:{folder}") == first
    seen = {first}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path = folder / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(teacher_identity(f"hf:{folder}"))
    assert len(seen) == 4


def test_identity_of_a_hub_model_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(spec: str, commit: str) -> str:
        monkeypatch.setattr(local, "hub_commit", lambda _: commit)
        return teacher_identity(spec)

    first = identity("hf:owner/name", "a" * 40)
    assert identity("hf:owner/name", "a" * 40) == first
    assert identity("hf:owner/name", "b" * 40) != first
    assert identity("hf:owner/other", "a" * 40) != first


def test_a_folder_is_loaded_and_asked(tiny_qwen: Path) -> None:
    spec = f"hf:{tiny_qwen}"
    teacher = load_teacher(spec, RelabelConfig(passage_tokens=16, pack_tokens=64), Silent())
    assert teacher.identity == teacher_identity(spec)
    assert teacher.can_score
    passage = "the river runs under the old stone bridge and the bird sleeps in the garden tree"
    [[(total, tokens), (other, _)]] = teacher.score(
        load_prompt("query_likelihood"), [Group(passage, ("which bird", "why so"))]
    )
    assert total < 0
    assert total != other
    assert tokens == teacher.count_tokens([" which bird"])[0]
    assert teacher.usage.truncated == 1


def test_a_folder_that_holds_no_weights(tiny_qwen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(TeacherError, match=f"teacher {folder} cannot be loaded: .*; use default, "):
        load_teacher(f"hf:{folder}", RelabelConfig(), Silent())


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 99\n"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors", POINTER, r"model.safetensors is a Git LFS pointer.*run `git lfs pull` in its folder"),
        ("tokenizer.json", POINTER, r"tokenizer.json is a Git LFS pointer"),
        ("model.safetensors", b"<!DOCTYPE html><title>Log in</title>", "is a web page"),
        ("model.safetensors", None, "a file of weights is cut off or damaged, download it again"),
        ("model.safetensors", b"", "model.safetensors is empty"),
        ("tokenizer.json", b'{"version": "9.0", "model": {"type": "Later"}}', "pip install -U transformers tokenizers"),
        ("config.json", b'{"model_type": "later"}', "pip install -U transformers tokenizers"),
    ],
)
def test_a_folder_whose_files_are_something_else(
    tiny_qwen: Path, tmp_path: Path, file: str, content: bytes | None, says: str
) -> None:
    folder = shutil.copytree(tiny_qwen, tmp_path / "model")
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(TeacherError, match=f"teacher {folder} cannot be loaded: .*{says}") as told:
        load_teacher(f"hf:{folder}", RelabelConfig(), Silent())
    assert "\n" not in str(told.value)


def test_a_pointer_that_nobody_reads_is_no_hindrance(tiny_qwen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_qwen, tmp_path / "model")
    (folder / "consolidated.gguf").write_bytes(POINTER)
    assert load_teacher(f"hf:{folder}", RelabelConfig(), Silent()).can_score


@pytest.mark.parametrize(
    ("content", "says"),
    [(POINTER, "run `git lfs pull`"), (b"<html>401", "is a web page"), (b"PK zip", "does not begin with GGUF")],
)
def test_a_gguf_file_that_is_something_else(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(content)
    with pytest.raises(TeacherError, match=f"teacher {file} cannot be loaded.*{says}"):
        load_teacher(f"gguf:{file}", RelabelConfig(), Silent())


def test_an_embedded_teacher_is_fetched_and_converted(
    tiny_qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"stands for weights"
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(data)
    pin = embedded.Wheels("Tiny Q4", ("tiny==1.0",), ".bin", len(data), hashlib.sha256(data).hexdigest(), None)
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", pin)
    monkeypatch.setitem(registry.BACKENDS, "tiny", registry.BACKENDS["default"])
    monkeypatch.setattr(embedded, "_unpack", lambda package, member, part: part.write_bytes(data))
    monkeypatch.setattr(gguf_files, "_convert", lambda gguf, folder: shutil.copytree(tiny_qwen, folder))
    teacher = load_teacher("tiny", RelabelConfig(), Silent())
    assert (teacher.name, teacher.identity) == ("Tiny Q4", pin.sha256[:16])
    named = load_teacher(f"gguf:{gguf}", RelabelConfig(), Silent())
    assert (named.name, named.identity) == ("weights", pin.sha256[:16])


def test_a_vllm_model_is_reached_through_its_server() -> None:
    """Runs that were made with it are still known by the same identity."""
    assert teacher_identity("vllm:some/model") == digest("vllm:some/model", "")
    with pytest.raises(ConfigError, match="start a vLLM server .* --llm openai:http://HOST:8000/v1#MODEL"):
        load_teacher("vllm:some/model", RelabelConfig(), Silent())
