import pytest
import torch

from gecko.compute import device


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


@pytest.fixture
def products(monkeypatch):
    """Seconds that a product takes, by type: as a caller would have them, on a clock of their own."""
    seconds, now, calls = {torch.float32: 3.0, torch.bfloat16: 1.0}, [0.0], []
    linear = torch.nn.functional.linear

    def product(states, weight):
        assert torch.get_num_threads() == 1
        first = states.dtype not in calls
        calls.append(states.dtype)
        now[0] += seconds[states.dtype] * (100 if first else 1)  # other work came between
        return linear(states, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    monkeypatch.setattr(device.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    device._bfloat16_speed.cache_clear()
    yield seconds
    device._bfloat16_speed.cache_clear()


@pytest.mark.parametrize(("seconds", "fast"), [(1.0, True), (2.9, False), (6.0, False)])
def test_bfloat16_is_fast_where_its_products_take_clearly_less_time(products, seconds, fast):
    products[torch.bfloat16] = seconds
    assert device.has_fast_bfloat16("cpu") is fast


def test_the_speed_is_measured_once_and_the_threads_stay_the_callers(products):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert device.has_fast_bfloat16("cpu")
        assert torch.get_num_threads() == 3
        products[torch.bfloat16] = 6.0  # the same answer for as long as the process lives
        assert device.has_fast_bfloat16("cpu")
    finally:
        torch.set_num_threads(threads)
