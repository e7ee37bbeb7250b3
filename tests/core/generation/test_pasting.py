"""Guards generation/pasting.py: a real defect keeps its contrast in any mask, on any ground."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from anomalydiffusion_core.gate.region_view import RegionView
from anomalydiffusion_core.generation import pasting
from anomalydiffusion_core.generation.pasting import RealDefect, choose_defect, contrast_kept, pasted

SIZE = 96


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bar(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def view(mask: np.ndarray, difference: np.ndarray | float, ground: float = 150) -> RegionView:
    """A plain ground with a defect that differs from it by so much, everywhere or pixel by pixel."""
    pixels = np.full((SIZE, SIZE, 3), ground, np.float32)
    pixels[mask] += np.broadcast_to(difference, (int(mask.sum()), 1) if np.ndim(difference) else ())
    return RegionView(pixels, mask)


def plain(ground: float) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), ground, np.float32)


@pytest.mark.parametrize("difference", [-60.0, 45.0])
@pytest.mark.parametrize("ground", [80.0, 150.0, 200.0])
def test_contrast_to_the_ground_keeps_its_sign_and_size(difference: float, ground: float) -> None:
    defect = RealDefect.of(view(bar(20, 30, 12, 30), difference), "photo")
    for mask in (bar(50, 10, 20, 20), bar(5, 60, 40, 6), bar(40, 0, 3, 96)):
        laid = pasted(plain(ground), mask, defect, generator())
        np.testing.assert_allclose(laid[mask], ground + difference, atol=0.01)
        weaker = pasted(plain(ground), mask, defect, generator(), 0.5)
        np.testing.assert_allclose(weaker[mask], ground + difference / 2, atol=0.01)
        assert np.array_equal(laid[~mask], plain(ground)[~mask])


def test_what_would_be_darker_than_black_is_black() -> None:
    defect = RealDefect.of(view(bar(20, 30, 12, 30), -60), "photo")
    mask = bar(50, 10, 20, 20)
    assert (pasted(plain(20), mask, defect, generator())[mask] == 0).all()


def test_in_its_own_mask_elsewhere_it_is_the_real_defect_pixel_by_pixel() -> None:
    mask, moved = bar(20, 30, 12, 30), bar(60, 10, 12, 30)
    mask[20:26, 30:40] = moved[60:66, 10:20] = False  # an end of its own: neither turned nor mirrored
    grain = np.random.default_rng(0).normal(-50, 12, (int(mask.sum()), 1))
    defect = RealDefect.of(view(mask, grain), "photo")
    laid = pasted(plain(110), moved, defect, generator())
    # both ends of the outline are told apart by the frame, so that pixels meet their own
    np.testing.assert_allclose((laid - 110)[moved], np.repeat(grain, 3, 1), atol=0.2)


def test_a_last_digit_in_a_mask_s_frame_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines, or two hosts, may differ in it: pixels that lie equally near must not flip."""
    grain = np.random.default_rng(0).normal(-50, 12, (400, 1))
    defect = RealDefect.of(view(bar(20, 30, 20, 20), grain), "photo")
    for mask in (bar(50, 10, 20, 20), bar(30, 30, 40, 40), bar(5, 5, 30, 15)):
        laid = pasted(plain(120), mask, defect, generator())
        with monkeypatch.context() as patch:
            frame_of = pasting.frame_of

            def nearly(marked: np.ndarray, frame_of: Any = frame_of) -> Any:
                frame = frame_of(marked)
                return replace(frame, centre=frame.centre + 1e-9, half=frame.half * (1 + 1e-10))

            patch.setattr(pasting, "frame_of", nearly)
            again = pasted(plain(120), mask, defect, generator())
        np.testing.assert_allclose(again, laid, atol=1e-3)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_it_turns_with_its_mask(quarters: int) -> None:
    mask = bar(20, 30, 12, 30)
    mask[20:26, 30:40] = False
    shade = np.zeros((SIZE, SIZE))
    shade[mask] = np.linspace(-80, -20, int(mask.sum()))
    defect = RealDefect.of(view(mask, shade[mask][:, None]), "photo")
    turned = np.rot90(mask, quarters)
    laid = pasted(plain(150), turned, defect, generator())
    np.testing.assert_allclose((laid[..., 0] - 150)[turned], np.rot90(shade, quarters)[turned], atol=0.2)


def test_what_lies_deep_inside_lies_deep_inside_another_form() -> None:
    """A dark core with a bright rim stays so in a mask of another form and size."""
    mask = bar(30, 30, 30, 30)
    inner = np.zeros_like(mask)
    inner[36:54, 36:54] = True
    defect = RealDefect.of(view(mask, np.where(inner, -70.0, 40.0)[mask][:, None]), "photo")
    rows, columns = np.ogrid[:SIZE, :SIZE]
    distance = np.hypot((rows - 45) / 2, columns - 50)
    laid = pasted(plain(120), distance < 20, defect, generator())[..., 0] - 120
    assert laid[distance < 6].mean() < -65 and laid[(distance > 17.5) & (distance < 19.5)].mean() > 35


def test_a_mask_is_filled_by_one_of_the_real_defects_most_like_it() -> None:
    lines, blobs = [(4, 80), (5, 70), (4, 60)], [(30, 30), (24, 28), (20, 26)]
    forms = [bar(30, 5, *sides) for sides in (*lines, *blobs)]
    defects = [RealDefect.of(view(form, -50), str(number)) for number, form in enumerate(forms)]
    chosen = [
        {choose_defect(defects, bar(10, 10, *sides), generator(seed)) for seed in range(30)}
        for sides in ((4, 65), (22, 26))
    ]
    assert chosen == [{0, 1, 2}, {3, 4, 5}]
    few = {choose_defect(defects[2:4], bar(10, 10, 4, 60), generator(seed)) for seed in range(20)}
    assert few == {0, 1}, "of few defects each serves, lest a mask always gets the same one"
    assert choose_defect(defects[:1], bar(10, 10, 4, 60), generator()) == 0


def test_a_real_mask_is_filled_by_another_photo_s_defect_where_there_is_one() -> None:
    forms, photos = [bar(30, 5, 4, 60), bar(10, 5, 5, 55), bar(40, 5, 6, 50)], ["a", "a", "b"]
    defects = [RealDefect.of(view(form, -50), photo) for form, photo in zip(forms, photos, strict=True)]

    def chosen(some: list[RealDefect], masked_by: str | None) -> set[int]:
        return {choose_defect(some, forms[0], generator(seed), masked_by=masked_by) for seed in range(20)}

    assert chosen(defects, "a") == {2} and chosen(defects, "b") == {0, 1}
    assert chosen(defects, None) == {0, 1, 2} and chosen(defects[:2], "a") == {0, 1}


def images(*levels: float) -> torch.Tensor:
    """One image for each level, 0 but for a square of that level."""
    stack = torch.zeros(len(levels), 3, 32, 32)
    stack[..., 8:24, 8:24] = torch.tensor(levels)[:, None, None, None]
    return stack


def test_a_faded_change_gets_back_what_it_lost_by_its_share() -> None:
    mask = (images(1, 1, 1) > 0)[:, :1]
    photo, reconstruction = torch.full((3, 3, 32, 32), 0.1), torch.full((3, 3, 32, 32), 0.2)
    start = photo + images(-0.6, 0.6, -0.3)
    faded = reconstruction + images(-0.2, -0.2, -0.5)  # faded; of the other sign; too strong
    for share, expected in ((1.0, (-0.6, 0.6, -0.3)), (0.5, (-0.4, 0.2, -0.4)), (0.0, (-0.2, -0.2, -0.5))):
        kept = contrast_kept(faded, reconstruction, start, photo, mask, share=share)
        torch.testing.assert_close(kept - reconstruction, images(*expected))


def test_contrast_is_kept_place_by_place_and_texture_stays() -> None:
    mask, photo = torch.ones(1, 1, 32, 64, dtype=torch.bool), torch.zeros(1, 3, 32, 64)
    start = torch.where(torch.arange(64) < 32, -0.4, 0.4).expand(1, 3, 32, 64)  # a dark and a bright half
    texture = 0.2 * (2 * ((torch.arange(32)[:, None] // 2 + torch.arange(64) // 2) % 2) - 1.0)
    kept = contrast_kept(photo + texture, photo, start, photo, mask, share=1)
    left, right = kept[..., 4:-4, 4:24], kept[..., 4:-4, 40:60]
    assert float(left.mean()) == pytest.approx(-0.4, abs=0.01) == -float(right.mean())
    assert float(left.std()) == pytest.approx(0.2, rel=0.1)


def test_a_thin_line_gets_its_whole_contrast_and_nothing_changes_beside_it() -> None:
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 15:17, 4:28] = True
    photo = torch.zeros(1, 3, 32, 32)
    kept = contrast_kept(photo, photo, photo - 0.5 * mask, photo, mask, share=1)
    torch.testing.assert_close(kept, photo - 0.5 * mask)


def test_grain_stays_as_sharp_in_a_bent_mask() -> None:
    """Means of several pixels would smear it: places are interpolated, not colours."""
    rows, columns = np.indices((SIZE, SIZE))
    mask = bar(20, 20, 30, 50)
    grain = np.where((rows // 3 + columns // 3) % 2, -70.0, -30.0)
    defect = RealDefect.of(view(mask, grain[mask][:, None]), "photo")
    bent = np.hypot((rows - 50) / 1.0, (columns - 48) / 1.7) < 18
    laid = (pasted(plain(150), bent, defect, generator())[..., 0] - 150)[bent]
    assert laid.std() > 0.8 * grain[mask].std() and laid.mean() == pytest.approx(-50, abs=2)
