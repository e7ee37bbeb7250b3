"""What each AAR mode is worth at the quality gate: the same tries (photos, masks, noise) under every mode.

Masks are the dataset's own that did not train the model, or those of `--masks`. On an object they are laid as
training masks lay on theirs; elsewhere they stay where they are. The gate is calibrated on the pairs that did
train the model, and remembers what it accepts, as when generating. Prints one JSON object, a row per mode:
- mean_fill: share of the mask that shows; components_over_half: of its connected parts, filled over half.
- changed_outside: pixels outside the masks that differ from the photo, in all tries; must be 0.
- accepted: share of the tries; accepted_by_type; problems: how often each check failed.
- plausibility: mean distance to the nearest real defect in a backbone's features; less is better.
- cpu_seconds_per_accepted: CPU time of one thread, without masks, the gate's calibration and writing.
- fill_difference, plausibility_difference: to the first mode, paired by try, with 95 % bootstrap intervals.
The sheets have a column per pair: photo, mask, result, what changed (doubled); under it mode, type, problems.

    .venv/bin/python benchmarks/gate.py leather.safetensors data/leather --count 8 --sheet accepted.png
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from measurement import busy_seconds, paired_difference, use_one_thread
from PIL import Image, ImageDraw
from trained import load_trained, trained_parser

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import Dataset, Pair
from anomalydiffusion_core.dataset.photos import read_mask
from anomalydiffusion_core.gate.checks import CHECKS
from anomalydiffusion_core.gate.scores import component_fills
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import GeneratedPair, PairGenerator
from anomalydiffusion_core.generation.runs import training_pairs
from anomalydiffusion_core.masks.files import read_mask_folder
from anomalydiffusion_core.masks.sources import MaskRequest, MaskSource, given_masks
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.reweighting import MODES, AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig
from anomalydiffusion_core.report.shown_pair import TILE, ShownPair

SEED = 7
SHOWN = 2  # pairs of each type and mode in a sheet, at most
COLUMNS = 12  # of a sheet, before it goes on below
LINE, LINES = 12, 2 + len(CHECKS)  # of text below a pair: pixels, and how many at most


@dataclass(frozen=True)
class Subject:
    """One defect type: normal photos, the pairs that trained it, and masks that did not."""

    name: str
    normals: list[Path]
    training: list[Pair]
    masks: MaskSource


@dataclass
class Tally:
    """What a mode's tries came to."""

    fills: list[float] = field(default_factory=list)
    components: list[float] = field(default_factory=list)
    plausibility: list[float | None] = field(default_factory=list)
    changed_outside: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    accepted: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0

    def add(self, pair: GeneratedPair) -> None:
        self.fills.append(pair.fill)
        for _, region in pair.regions:
            self.components += component_fills(region.before, region.after, region.mask, region.noise)
        self.plausibility.append(pair.scores.get("plausibility"))
        self.changed_outside += shown(pair).changed_outside()
        self.problems.update(pair.problems)
        self.accepted[pair.defect_type].append(not pair.problems)

    def figures(self, reference: Tally) -> dict[str, object]:
        """The row of a mode; differences are to the tally of the first one."""
        accepted = [one for ones in self.accepted.values() for one in ones]
        return {
            "tries": len(accepted),
            "mean_fill": _rounded(self.fills),
            "components_over_half": _rounded([fill > 0.5 for fill in self.components]),
            "changed_outside": self.changed_outside,
            "accepted": _rounded(accepted),
            "accepted_by_type": {name: _rounded(ones) for name, ones in self.accepted.items()},
            "problems": dict(self.problems.most_common()),
            "plausibility": _rounded(self.plausibility),
            "cpu_seconds_per_accepted": round(self.seconds / sum(accepted), 3) if any(accepted) else None,
            "fill_difference": paired_difference(self.fills, reference.fills),
            "plausibility_difference": paired_difference(self.plausibility, reference.plausibility),
        }


def main() -> None:
    parser = trained_parser(str(__doc__), guidance=2.5, steps=25)
    parser.add_argument("--count", type=int, default=8, help="tries per defect type")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=sorted(MODES, key="off".__ne__),
        help="as off, or adaptive:maximum=1.5,start=0.5",
    )
    parser.add_argument("--masks", type=Path, help="a folder of masks, as 'generate --masks' takes it")
    parser.add_argument("--sheet", type=Path, help="save a picture of accepted pairs")
    parser.add_argument("--rejected-sheet", type=Path, help="save a picture of rejected pairs")
    arguments = parser.parse_args()
    use_one_thread()
    base, learned, dataset = load_trained(arguments)
    subjects = find_subjects(learned, dataset, arguments.masks)
    tallies: dict[str, Tally] = {}
    accepted: list[Image.Image] = []
    rejected: list[Image.Image] = []
    for mode in arguments.modes:
        aar = aar_config(mode)
        sampling = SamplingConfig(steps=arguments.steps, guidance=arguments.guidance, aar=aar)
        tally = tallies[mode] = Tally()
        for subject in subjects:
            pairs = tried(
                base,
                learned,
                subject,
                GenerationConfig(sampling, seed=SEED, start="noise"),
                arguments.count,
                tally,
            )
            accepted += [column(pair, mode) for pair in pairs if not pair.problems][:SHOWN]
            rejected += [column(pair, mode) for pair in pairs if pair.problems][:SHOWN]
    first = tallies[arguments.modes[0]]
    calibrated = {subject.name: len(subject.training) for subject in subjects}
    rows = {mode: tally.figures(first) for mode, tally in tallies.items()}
    print(json.dumps({"modes": rows, "training_pairs": calibrated, "options": options_of(arguments)}))
    for path, columns in ((arguments.sheet, accepted), (arguments.rejected_sheet, rejected)):
        if path and columns:
            sheet(columns).save(path)


def aar_config(mode: str) -> AARConfig:
    """AAR as `--modes` names it; raises ValueError where there is no such mode, TypeError no such setting."""
    name, _, settings = mode.partition(":")
    given = [setting.partition("=") for setting in settings.split(",") if setting]
    return AARConfig(name, **{key: float(value) for key, _, value in given})


def find_subjects(learned: Learned, dataset: Dataset, folder: Path | None) -> list[Subject]:
    """The defect types that both the model and the dataset have."""
    subjects = []
    for name, pairs in dataset.by_type().items():
        if name not in learned.anomaly:
            continue
        category = dataset.categories[pairs[0].category]
        training = training_pairs(category, learned, name)
        unseen = [pair for pair in pairs if pair not in training] or pairs
        masks = (
            read_mask_folder(folder, *name.split("/", 1))
            if folder
            else [read_mask(pair.mask) for pair in unseen]
        )
        placed = not any(place.pose for place in learned.mask_placements.get(name, []))
        source = given_masks(MaskRequest(name, given=masks, given_placed=placed))
        subjects.append(Subject(name, list(category.normals), training, source))
    return subjects


def tried(
    base: DiffusersModel,
    learned: Learned,
    subject: Subject,
    config: GenerationConfig,
    count: int,
    tally: Tally,
) -> list[GeneratedPair]:
    """Pairs of the tries whose mask is usable, judged one after the other as when generating."""
    generator = PairGenerator(base, learned, subject.normals, config, real={subject.name: subject.training})
    generator.gate(subject.name)  # is calibrated now, outside the seconds
    pairs: list[GeneratedPair] = []
    start = busy_seconds("cpu")
    drafts = generator.usable_drafts(subject.name, range(count), subject.masks)
    for first in range(0, len(drafts), config.batch_size):
        for pair in generator.make(subject.name, drafts[first : first + config.batch_size]):
            pairs.append(generator.judged(pair))
            if not pairs[-1].problems:
                generator.remember(pairs[-1])
    tally.seconds += busy_seconds("cpu") - start
    for pair in pairs:
        tally.add(pair)
    return pairs


def shown(pair: GeneratedPair) -> ShownPair:
    return ShownPair(pair.photo, pair.result, pair.mask)


def column(pair: GeneratedPair, mode: str) -> Image.Image:
    """A pair's tiles, and below them its mode, type and problems."""
    pictures = shown(pair)
    tiles = Image.fromarray(np.concatenate(pictures.tiles(pictures.close_up())))
    lines = [mode, pair.defect_type.partition("/")[2], *pair.problems]
    picture = Image.new("RGB", (tiles.width, tiles.height + LINE * LINES))
    picture.paste(tiles)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((2, tiles.height + LINE * number), line[: TILE // 6], "white")
    return picture


def sheet(columns: list[Image.Image]) -> Image.Image:
    """Columns side by side, `COLUMNS` in a band."""
    width, height = columns[0].size
    bands = -(-len(columns) // COLUMNS)
    picture = Image.new("RGB", (width * min(COLUMNS, len(columns)), height * bands))
    for number, one in enumerate(columns):
        picture.paste(one, (width * (number % COLUMNS), height * (number // COLUMNS)))
    return picture


def options_of(arguments: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on."""
    return {"count": arguments.count, "steps": arguments.steps, "guidance": arguments.guidance, "seed": SEED}


def _rounded(values: list[float | None] | list[float] | list[bool]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


if __name__ == "__main__":
    main()
