"""Every package of an extra is named, with the command that installs the extra, where it is needed and missing."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gecko.config.training import BackboneConfig
from gecko.core.errors import GeckoError
from gecko.corpus.documents import Documents
from gecko.corpus.duplicates import Seen
from gecko.corpus.language import language_of
from gecko.corpus.remote import read_rows
from gecko.encoder.build import add_lora
from gecko.encoder.export import Target, export_model
from gecko.encoder.gguf_export import export_gguf
from gecko.evaluation.tasks import load_named
from gecko.run.ray import Cluster


def document(ending: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / f"a{ending}").write_text("<p>words")
        documents = Documents(60.0)
        try:
            return documents.read(folder / f"a{ending}", ending)
        finally:
            documents.close()

    return read


def lora(_: Path) -> object:
    model: Any = None  # is not looked at before the package is
    return add_lora(model, BackboneConfig(lora_rank=4), 0)


def export(target: Target, *, int8: bool = False) -> Callable[[Path], object]:
    return lambda folder: export_model("minilm", folder / "out", target, int8=int8)


# By extra and package as it is imported: what needs it.
NEEDS: dict[tuple[str, str], Callable[[Path], object]] = {
    ("corpus", "charset_normalizer"): document(".html"),
    ("corpus", "trafilatura"): document(".html"),
    ("corpus", "pypdf"): document(".pdf"),
    ("corpus", "lxml"): document(".docx"),
    ("corpus", "py3langid"): lambda _: language_of("words", "corpus.languages"),
    ("corpus", "rensa"): lambda _: Seen(0.8),
    ("corpus", "sqlalchemy"): lambda _: list(read_rows("sqlite:///x.db#SELECT 1")),
    ("corpus", "psycopg"): lambda _: list(read_rows("postgresql://127.0.0.1:1/x#SELECT 1")),
    ("gguf", "xllamacpp"): lambda folder: export_gguf("minilm", folder / "out"),
    ("lora", "peft"): lora,
    ("mteb", "mteb"): lambda _: load_named("mteb:SciFact"),
    ("openvino", "onnx"): export("onnx"),
    ("openvino", "onnxruntime"): export("onnx"),
    ("openvino", "onnx_ir"): export("onnx", int8=True),
    ("openvino", "openvino"): export("openvino"),
    ("openvino", "nncf"): export("openvino", int8=True),
    ("ray", "ray"): lambda _: Cluster(),
}
SERVE = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")
ELSEWHERE = {
    "cryptography",  # needed by some PDFs alone: tests/corpus/test_kinds.py
    "lxml_html_clean",  # trafilatura's, which does not ask for it; its absence is one of trafilatura
    "uvloop",  # used by uvicorn where it is there
}


@pytest.mark.parametrize(("extra", "package"), NEEDS, ids=lambda part: part)
def test_a_missing_package_says_what_to_install(
    extra: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    stub = tmp_path / "none" / package / "__init__.py"  # for documents, which are read by a process with the same path
    stub.parent.mkdir(parents=True)
    stub.write_text(f"raise ModuleNotFoundError('No module named {package}')")
    monkeypatch.syspath_prepend(str(tmp_path / "none"))
    with pytest.raises(GeckoError, match=re.escape(f"pip install 'gecko-embed[{extra}]'")) as caught:
        NEEDS[extra, package](tmp_path)
    assert package in str(caught.value).lower()


def test_serve_without_a_package_says_what_to_install() -> None:
    code = """
import sys
from gecko.cli.main import main
sys.argv[1:], names = ["serve", "/nowhere"], sys.argv[1:]
for name in names:
    for module in [module for module in sys.modules if module.startswith("gecko.serving.")]:
        del sys.modules[module]
    before, sys.modules[name] = sys.modules.get(name), None
    try:
        main()
    except SystemExit as end:
        print(name, end.code, file=sys.stderr, flush=True)
    del sys.modules[name]
    if before:
        sys.modules[name] = before
"""
    command = [sys.executable, "-c", code, *SERVE]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stderr
    for name in SERVE:
        told, mark, said = said.partition(f"{name} 2\n")
        assert mark and name in told and "pip install 'gecko-embed[serve]'" in told.replace("\n", " "), told


def test_no_package_of_an_extra_is_without_a_test() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        re.split(r"[^\w-]", requirement)[0].replace("-", "_").lower()
        for extra, packages in project["optional-dependencies"].items()
        if extra not in ("clients", "dev", "docs", "stores", "test-all")  # these are not imported by the package
        for requirement in packages
    }
    assert named == {package for _, package in NEEDS} | set(SERVE) | ELSEWHERE
