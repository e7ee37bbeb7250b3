"""Which settings suit a defect type: pairs are made with each of a few, and the gate, which knows the type's
training pairs alone, says how many are good enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from ..dataset.layout import Category, Dataset, Pair
from ..dataset.photos import read_mask
from ..gate.prediction import ENOUGH
from ..masks.invention import TriesExhausted
from ..masks.sources import REAL, MaskRequest, mask_source
from ..method.embeddings import Learned, Tuning
from ..method.latent_diffusion import LatentDiffusion
from ..method.sampling import NOISE, PASTED
from .config import TUNED, GenerationConfig
from .generator import PairGenerator
from .runs import RunWatch, training_pairs

TRIES = 8  # with each setting
WITHIN = 1  # of them: settings that so few tell apart count as equal
SEED = 1 << 32  # of no run that people would ask for
USUAL = GenerationConfig()
DENOISES = 0.2, 0.3, 0.45, 0.6  # of a pasted defect, from the most like it to the newest
OTHER_GUIDANCE = {PASTED: 2.0, NOISE: 1.0}
OTHER_MODES = "off", "adaptive"

Accepted = Callable[[Tuning], Tuning]  # the same, with how many of its tries the gate accepted


def tunable(learned: Learned, dataset: Dataset, defect_types: Iterable[str]) -> dict[str, list[Pair]]:
    """The training pairs of those types that have `ENOUGH` of them, and normal photos, in the dataset."""
    found = {}
    for name in defect_types:
        category = dataset.categories.get(name.partition("/")[0])
        pairs = training_pairs(category, learned, name) if category and category.normals else []
        if len(pairs) >= ENOUGH:
            found[name] = pairs
    return found


def tune(
    base: LatentDiffusion,
    learned: Learned,
    dataset: Dataset,
    defect_types: Iterable[str],
    watch: RunWatch = RunWatch(),
    *,
    tries: int = TRIES,
) -> None:
    """Finds the settings of those types that are `tunable`, with so many tries of each, and notes them in
    `learned`, type by type, unless hardly a try was accepted. Of `watch`, stages and steps are told.

    Judged is by the gate, with masks of the training pairs, so nothing but these pairs is looked at.
    """
    for name, pairs in tunable(learned, dataset, defect_types).items():
        category = dataset.categories[pairs[0].category]
        learned.tunings.pop(name, None)  # of before
        if best := best_tuning(_judge(base, learned, category, pairs, watch, tries)):
            learned.tunings[name] = best


def best_tuning(accepted: Accepted) -> Tuning | None:
    """The newest pasted start that hardly a try fails with, for what starts near a real defect is little more
    than that again; where there is none, that accepted most often. Noise, then guidance and attention: each
    as usual unless another is accepted more often. None where hardly a try is accepted, which tells nothing.
    """
    aar = USUAL.sampling.aar
    pasted = [Tuning(PASTED, share, USUAL.pasted_guidance, aar.mode, aar.strength) for share in DENOISES]
    noise = Tuning(NOISE, USUAL.sampling.denoise, USUAL.sampling.guidance, aar.mode, aar.strength)
    starts, from_noise = [accepted(tuning) for tuning in pasted], accepted(noise)
    best = max(starts, key=lambda tuning: (tuning.accepted, -abs(tuning.denoise - USUAL.sampling.denoise)))
    best = from_noise if from_noise.accepted > best.accepted + WITHIN else best
    best = next((tuning for tuning in reversed(starts) if tuning.accepted >= tuning.tries - WITHIN), best)
    if best.accepted <= WITHIN:
        return None
    others = [{"guidance": OTHER_GUIDANCE[best.start]}, *({"aar_mode": mode} for mode in OTHER_MODES)]
    for changed in others:
        other = accepted(replace(best, **changed))
        best = other if other.accepted > best.accepted + WITHIN else best
    return best


def _judge(
    base: LatentDiffusion,
    learned: Learned,
    category: Category,
    pairs: list[Pair],
    watch: RunWatch,
    tries: int,
) -> Accepted:
    """Tries settings of one type, that of its training pairs, on the category's normal photos."""
    trial, name = learned.copied(), pairs[0].defect_type
    config = replace(USUAL, start=TUNED, seed=SEED, tries_per_pair=1)
    generator = PairGenerator(base, trial, list(category.normals), config, real={name: pairs})
    request = MaskRequest(name, SEED, real=lambda: [read_mask(pair.mask) for pair in pairs])
    masks, settings = {name: mask_source({REAL: 1.0}, request)}, len(DENOISES) + 2 + len(OTHER_MODES)
    done = 0

    def accepted(tuning: Tuning) -> Tuning:
        nonlocal done
        watch.on_stage(f"{name} settings", done, settings, in_words(tuning))
        trial.tunings[name], count = tuning, 0
        with suppress(TriesExhausted):
            for _ in generator.accepted(name, masks, tries, on_step=watch.on_step):
                count += 1
        done += 1
        tuning = replace(tuning, accepted=count, tries=tries)
        watch.on_stage(f"{name} settings", done, settings, in_words(tuning))
        return tuning

    return accepted


def in_words(tuning: Tuning) -> str:
    """Such as 'from a real defect noised to 0.3, guidance 1, attention released (6 of 8 accepted)'."""
    start = f"from a real defect noised to {tuning.denoise:g}" if tuning.start == PASTED else "from noise"
    tried = f" ({tuning.accepted} of {tuning.tries} accepted)" if tuning.tries else ""
    return f"{start}, guidance {tuning.guidance:g}, attention {tuning.aar_mode}{tried}"
