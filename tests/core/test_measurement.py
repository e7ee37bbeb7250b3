"""How the benchmarks measure."""

from __future__ import annotations

import torch
from measurement import peak_allocated
from released_encoder import ReleasedEncoder


def test_the_peak_is_of_the_tensors_that_live_at_once() -> None:
    def job(held: torch.Tensor) -> None:
        for _ in range(3):
            held = held + 1  # two at once, while it is computed
        view = held.view(512, 512)
        del held
        assert view[0, 0] == 3

    assert 3 <= peak_allocated(lambda: torch.zeros(2**18), job, "cpu") < 3.01  # 1 MiB each


def test_the_released_encoder_has_the_published_checkpoint_s_tensors() -> None:
    with torch.device("meta"):
        state = ReleasedEncoder(1280).state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (397, 356_043_764)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["body.21.shortcut_layer.0.weight"] == (512, 256, 1, 1)
    assert shapes["styles.3.convs.0.weight"] == (1280, 512, 3, 3)
    assert shapes["latlayer1.weight"] == (512, 256, 1, 1)
