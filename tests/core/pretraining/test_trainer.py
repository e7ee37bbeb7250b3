"""Guards pretraining/trainer.py: what the loss weighs, and how the text encoder starts."""

import torch

from anomalydiffusion_core.pretraining.trainer import fresh_text_encoder, loss_weights


def test_a_thin_defect_weighs_as_much_in_the_loss_as_a_wide_one() -> None:
    touched = torch.zeros((4, 1, 16, 16), dtype=torch.bool)
    touched[0, :, 3, 2:12] = True  # 10 cells
    touched[1, :, :8] = True  # half of all
    touched[2, :, 0, 0] = True  # one cell, which counts as six
    weights = loss_weights(touched, 0.5)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(4))
    inside = (weights * touched).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    # half of the loss, and what the defect's cells have of the other half
    assert torch.allclose(inside[:2], 0.5 + 0.5 * torch.tensor([10 / 256, 0.5]))
    assert 0.1 < float(inside[2]) < 0.3
    assert torch.equal(weights[3], torch.ones(1, 16, 16))
    assert torch.equal(loss_weights(touched, 0.0), torch.ones(4, 1, 16, 16))


def test_words_are_seen_through_a_fresh_text_encoder():
    torch.manual_seed(0)
    text_encoder = fresh_text_encoder(32).eval()
    ids = torch.randint(30, (1, 16))
    other = ids.clone()
    other[0, 9] = (ids[0, 9] + 1) % 30
    with torch.no_grad():
        before = text_encoder(ids).last_hidden_state[0]
        after = text_encoder(other).last_hidden_state[0]
    assert torch.equal(before[:9], after[:9])
    assert (after[9] - before[9]).norm() > 0.5 * before[9].norm()
