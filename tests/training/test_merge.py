"""Merged models against the same sums written as slow loops."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.errors import ConfigError, TrainingError
from gecko.training.merge import merge_models


@pytest.fixture(scope="module")
def models(tiny_bert, tmp_path_factory):
    """Three models whose weights differ a little."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(3):
        shutil.copytree(tiny_bert, folder / str(number))
        file = folder / str(number) / "model.safetensors"
        random = torch.Generator().manual_seed(number)
        moved = {
            name: value + 0.3 * torch.randn(value.shape, generator=random) if value.is_floating_point() else value
            for name, value in load_file(file).items()
        }
        save_file(moved, file, metadata={"format": "pt"})
        config = folder / str(number) / "config_sentence_transformers.json"
        saved = json.loads(config.read_text())
        config.write_text(json.dumps({**saved, "matryoshka_dimensions": [32, 16, 8][: 3 - number // 2]}))
    return [str(folder / str(number)) for number in range(3)]


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


@pytest.mark.parametrize("given_weights", [(), (1.0, 2.0, 5.0)])
def test_a_soup_is_the_weighted_mean(models, tmp_path, given_weights):
    merge_models(models, tmp_path / "out", given_weights)
    shares = np.array(given_weights or (1, 1, 1)) / sum(given_weights or (1, 1, 1))
    all_weights, merged = [weights(folder) for folder in models], weights(tmp_path / "out")
    assert merged.keys() == all_weights[0].keys()
    for name, value in merged.items():
        if value.is_floating_point():
            expected = sum(share * one[name].double() for share, one in zip(shares, all_weights, strict=True))
            assert torch.allclose(value.double(), expected, atol=1e-6)
            assert not torch.allclose(value, all_weights[0][name], atol=1e-3)


def test_end_points_and_equal_models(models, tmp_path):
    merge_models(models[:2], tmp_path / "first", (1.0, 0.0))
    merge_models(models[:2], tmp_path / "second", (0.0, 1.0))
    merge_models([models[0]] * 3, tmp_path / "same", (0.2, 0.3, 0.5))
    for folder, like in (("first", 0), ("second", 1), ("same", 0)):
        merged, expected = weights(tmp_path / folder), weights(models[like])
        assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in expected)


def test_the_command_saves_a_plain_model_that_knows_its_widths(models, tmp_path):
    from sentence_transformers import SentenceTransformer

    options = ["--weight", "1", "--weight", "1", "--weight", "2"]
    result = CliRunner().invoke(app, ["merge", *models, "-o", str(tmp_path / "out"), *options], catch_exceptions=False)
    assert result.exit_code == 0
    saved = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert saved["matryoshka_dimensions"] == [32, 16]
    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["red cat"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("count", "given_weights", "message"),
    [
        (1, (), "1 model to merge"),
        (2, (1.0,), "1 weights for 2"),
        (2, (1.0, -1.0), "from 0 up"),
        (2, (0.0, 0.0), "not all 0"),
    ],
)
def test_what_cannot_be_merged_is_said(models, tmp_path, count, given_weights, message):
    with pytest.raises(ConfigError, match=message):
        merge_models(models[:count], tmp_path / "out", given_weights)


def test_one_model_for_many_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="one string is given"):
        merge_models(models[0], tmp_path / "out")


def test_a_folder_in_use_is_left_alone(models):
    with pytest.raises(ConfigError, match="is in use"):
        merge_models(models[:2], Path(models[2]))


def test_other_architectures_formats_and_settings_are_refused(models, tiny_model, tmp_path):
    with pytest.raises(TrainingError, match="another architecture .*only models from one start"):
        merge_models([models[0], str(tiny_model)], tmp_path / "out")
    shutil.copytree(models[1], tmp_path / "unified")
    config = tmp_path / "unified" / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prompts": {"document": "title: none | text: "}}))
    with pytest.raises(TrainingError, match="reads the unified format"):
        merge_models([models[0], str(tmp_path / "unified")], tmp_path / "out")
    shutil.copytree(models[1], tmp_path / "pooling")
    (pooling,) = (tmp_path / "pooling").glob("*Pooling/config.json")
    pooling.write_text(
        pooling.read_text()
        .replace('"mean"', '"cls"')
        .replace(
            '"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": true'
        )
    )
    with pytest.raises(TrainingError, match="other modules or settings"):
        merge_models([models[0], str(tmp_path / "pooling")], tmp_path / "out")
