"""Merged models against the same sums written as slow loops, and the end points of every way."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gecko.cli import app
from gecko.errors import ConfigError, TrainingError
from gecko.training.merge import merge_models, slerp


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


def slow_slerp(a, b, t):
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    dot = (
        sum(x * y for x, y in zip(a, b, strict=True))
        / math.sqrt(sum(x * x for x in a))
        / math.sqrt(sum(y * y for y in b))
    )
    omega = math.acos(dot)
    return [
        (math.sin((1 - t) * omega) * x + math.sin(t * omega) * y) / math.sin(omega) for x, y in zip(a, b, strict=True)
    ]


@pytest.mark.parametrize("given_weights", [(), (1.0, 2.0, 5.0)])
def test_a_soup_is_the_weighted_mean(models, tmp_path, given_weights):
    merge_models(models, tmp_path / "out", "soup", given_weights)
    shares = np.array(given_weights or (1, 1, 1)) / sum(given_weights or (1, 1, 1))
    all_weights, merged = [weights(folder) for folder in models], weights(tmp_path / "out")
    assert merged.keys() == all_weights[0].keys()
    for name, value in merged.items():
        if value.is_floating_point():
            expected = sum(share * one[name].double() for share, one in zip(shares, all_weights, strict=True))
            assert torch.allclose(value.double(), expected, atol=1e-6)
            assert not torch.allclose(value, all_weights[0][name], atol=1e-3)


def test_slerp_is_the_arc(models, tmp_path):
    merge_models(models[:2], tmp_path / "out", "slerp", (3.0, 1.0))
    one, other, merged = (weights(folder) for folder in (*models[:2], tmp_path / "out"))
    for name, value in merged.items():
        if value.is_floating_point() and value.numel() < 3000:
            expected = slow_slerp(one[name], other[name], 0.25)
            assert np.allclose(value.double().ravel(), expected, atol=1e-5), name
    mean = {name: (3 * one[name] + other[name]) / 4 for name in one}
    assert any(not torch.allclose(merged[name], mean[name], atol=1e-3) for name in merged)


@pytest.mark.parametrize("method", ["soup", "slerp"])
def test_end_points_and_equal_models(models, tmp_path, method):
    merge_models(models[:2], tmp_path / "first", method, (1.0, 0.0))
    merge_models(models[:2], tmp_path / "second", method, (0.0, 1.0))
    merge_models([models[0]] * 3, tmp_path / "same", method, (0.2, 0.3, 0.5))
    for folder, like in (("first", 0), ("second", 1), ("same", 0)):
        merged, expected = weights(tmp_path / folder), weights(models[like])
        assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in expected)


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.floats(0, 1),
)
def test_slerp_of_unit_vectors_stays_on_the_sphere_and_divides_the_angle(a, b, share):
    one, other = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    if one.norm() < 0.1 or other.norm() < 0.1:
        return
    one, other = one / one.norm(), other / other.norm()
    cosine = float(one @ other)
    if abs(cosine) > 0.999:
        return
    between = slerp(one, other, share)
    assert abs(float(between.norm()) - 1) < 1e-9
    assert abs(float(one @ between) - math.cos(share * math.acos(cosine))) < 1e-9


def test_nearly_parallel_and_zero_tensors_are_mixed_along_the_line():
    one = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(slerp(one, one * 3, 0.5), one * 2)
    assert torch.allclose(slerp(torch.zeros(2, dtype=torch.float64), one, 0.5), one / 2)


def test_the_command_saves_a_plain_model_that_knows_its_widths(models, tmp_path):
    from sentence_transformers import SentenceTransformer

    options = ["--method", "slerp", "--weight", "1", "--weight", "1", "--weight", "2"]
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
        merge_models(models[:count], tmp_path / "out", "soup", given_weights)


def test_an_unknown_method_and_one_model_for_many(models, tmp_path):
    with pytest.raises(ConfigError, match="method mean: give one of soup, slerp"):
        merge_models([Path(model) for model in models[:2]], tmp_path / "out", "mean")
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
