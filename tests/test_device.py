import pytest
import torch

from gecko import device


def claim(monkeypatch, flag: bool, speed: float) -> None:
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: flag, raising=False)
    monkeypatch.setattr(device, "_bfloat16_speed", lambda: speed)


@pytest.mark.parametrize(
    ("flag", "speed", "fast"),
    [
        (True, 3.0, True),
        (True, 0.5, False),  # an Intel core with AVX512-BF16 whose matrix unit is hidden
        (True, 1.0, False),  # nothing to gain for the digits that are lost
        (False, 3.0, False),  # emulated: not even tried
    ],
)
def test_bfloat16_needs_the_instruction_and_the_speed(monkeypatch, flag, speed, fast):
    claim(monkeypatch, flag, speed)
    assert device.has_fast_bfloat16("cpu") is fast
    assert device.fast_dtype("cpu") == (torch.bfloat16 if fast else torch.float32)


def test_the_speed_is_that_of_products_and_is_measured_once(monkeypatch):
    device._bfloat16_speed.cache_clear()
    asked = []
    linear = torch.nn.functional.linear

    threads = torch.get_num_threads()
    torch.set_num_threads(3)

    def counted(states, weight):
        assert torch.get_num_threads() == 1
        asked.append(states.dtype)
        return linear(states, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    first, second = device._bfloat16_speed(), device._bfloat16_speed()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)
    assert first == second > 0
    assert set(asked) == {torch.float32, torch.bfloat16}
    assert len(asked) == 16
