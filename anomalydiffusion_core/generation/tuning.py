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
OTHER_DENOISES = 0.2, 0.45, 0.6  # of a pasted defect: nearer to it, and newer
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
    """The usual settings, but for those of which the gate accepts others more often: start, then guidance and
    attention. None where hardly a try is accepted, which tells nothing.
    """
    aar = USUAL.sampling.aar
    best = accepted(Tuning(PASTED, USUAL.sampling.denoise, USUAL.pasted_guidance, aar.mode, aar.strength))
    noise = replace(best, start=NOISE, guidance=USUAL.sampling.guidance)
    starts = [*(replace(best, denoise=share) for share in OTHER_DENOISES), noise]
    best = _better(best, map(accepted, starts))
    others = [{"guidance": OTHER_GUIDANCE[best.start]}, *({"aar_mode": mode} for mode in OTHER_MODES)]
    for changed in others:
        best = _better(best, [accepted(replace(best, **changed))])
    return best if best.accepted > WITHIN else None


def _better(usual: Tuning, others: Iterable[Tuning]) -> Tuning:
    """The most accepted, if it is more so than the usual by more than chance; of equals the first."""
    best = max(others, key=lambda tuning: tuning.accepted)
    return best if best.accepted > usual.accepted + WITHIN else usual


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
    masks, settings = {name: mask_source({REAL: 1.0}, request)}, len(OTHER_DENOISES) + 3 + len(OTHER_MODES)
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
