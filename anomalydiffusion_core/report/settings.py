"""How pairs were made, in sentences, from what their manifest rows say.

A row is data from a file: whatever is not what this package writes there is left out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..gate.checks import CHECKS
from ..generation.tuning import in_words
from ..masks.sources import SOURCES
from ..method.artifact import tuning_from
from ..method.reweighting import MODES

HASHES = {
    "base_weights": "weights of the base",
    "artifact_sha256": "artifact (SHA-256)",
    "learned_sha256": "embeddings (SHA-256)",
    "torch": "torch",
    "package_version": "anomalydiffusion",
}
FREE, PLAIN = "free", "none"
STARTS = {"tuned": "Pairs", "pasted": "Pairs", "mixed": "About half of the pairs"}  # from a real defect


def settings_in_words(row: dict[str, Any]) -> list[str]:
    """What all pairs of a run have in common, from one of their rows; a ComfyUI graph node by node."""
    base, config = _text(row, "base_family"), row.get("config")
    sentences = [f"The base model is of the family {base}."] if base else []
    if isinstance(config, dict):
        sentences += [*_sampling(config), *_tunings(row), *_masks(config, row), *_gate(config)]
        seed = _number(config, "seed")
        sentences += [f"The seed is {seed}: the same command makes the same pairs."] if seed else []
    prompt = row.get("prompt")
    return sentences + (_graph(prompt) if isinstance(prompt, dict) else [])


def pair_in_words(row: dict[str, Any]) -> list[str]:
    """What one pair was made of."""
    normal, template = _text(row, "normal"), _text(row, "template")
    sentences = [f"Made on the normal photo {normal}."] if normal else []
    if template:
        sentences.append(
            f"The prompt was “{template.replace('{}', '…')}”, with the learned tokens in place of “…”."
        )
    if isinstance(sources := row.get("masks_from"), dict):
        words = [f"{name}: {source}" for name, source in sources.items() if isinstance(source, str)]
        sentences.append(f"Mask from ({', '.join(words)}).")
    if isinstance(pasted := row.get("pasted_from"), dict):
        photos = [photo for used in pasted.values() if isinstance(used, list) for photo in used]
        named = ", ".join(dict.fromkeys(photo for photo in photos if isinstance(photo, str)))
        sentences += [f"Denoised from the real defect of the training photo {named} (hash)."] if named else []
    if strength := _number(row, "strength"):
        sentences.append(
            f"The defect's embedding acted at {strength} of its strength, with guidance "
            f"{_number(row, 'guidance')}."
        )
    if index := _number(row, "index"):
        sentences.append(f"It was try number {index} of its run ({_text(row, 'run')}).")
    return sentences


def raw_settings(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The same as the row holds it: settings as JSON, and what identifies model and versions."""
    named = {"config": "settings", "prompt": "ComfyUI graph"}
    items = [(title, json.dumps(row[key])) for key, title in named.items() if row.get(key)]
    return items + [(title, _text(row, key)) for key, title in HASHES.items() if _text(row, key)]


def _sampling(config: dict[str, Any]) -> list[str]:
    sampling = _part(config, "sampling")
    steps, guidance = _number(sampling, "steps"), _number(sampling, "guidance")
    sentences = [
        f"Each defect was drawn in {steps} steps of {_text(sampling, 'scheduler')} with guidance {guidance}."
    ]
    if (start := _text(config, "start")) in STARTS:
        sentences.append(
            f"{STARTS[start]} start from a real training defect, laid into the mask and noised to "
            f"{_number(sampling, 'denoise')} of the schedule, with guidance "
            f"{_number(config, 'pasted_guidance')}; others from noise."
        )
    aar = _part(sampling, "aar")
    mode, strength = _text(aar, "mode"), _number(aar, "strength")
    if mode == "off" or strength == "0":
        sentences.append("Attention was not re-weighted.")
    else:
        meaning = f" ({MODES[mode].meaning})" if mode in MODES else ""
        sentences.append(
            f"Attention was re-weighted by mode {mode}{meaning} at strength {strength}, from "
            f"{_number(aar, 'start')} to {_number(aar, 'end')} of the steps."
        )
    varied = {
        "embedding's strength": "vary_strength",
        "guidance": "vary_guidance",
        "pasted defect's contrast": "vary_contrast",
    }
    for what, key in varied.items():
        if (spread := _number(config, key)) not in ("", "0"):
            sentences.append(f"The {what} varies by up to {spread} of itself from pair to pair.")
    return sentences


def _tunings(row: dict[str, Any]) -> list[str]:
    """What the types were made with that were tuned."""
    sentences = []
    for name, tuning in _part(row, "tunings").items():
        try:
            found = tuning_from(tuning)
        except (TypeError, ValueError):
            continue
        sentences.append(
            f"{name} was tuned: {in_words(replace(found, tries=0))}, by which the gate accepted "
            f"{found.accepted} of {found.tries} tries."
        )
    return sentences


def _masks(config: dict[str, Any], row: dict[str, Any]) -> list[str]:
    weights = _text(row, "mask_sources").split(" ")[0]
    words = []
    for name, _, weight in (part.partition("=") for part in weights.split(",") if part):
        meaning = f", {SOURCES[name].meaning}" if name in SOURCES else ""
        words.append(f"{name} (weight {weight or 1}{meaning})")
    sentences = [f"Masks are {'; '.join(words)}."] if words else []
    anywhere = _text(config, "placement") == FREE
    where = "anywhere on the object" if anywhere else "as the training masks lay on theirs"
    if _text(config, "foreground") == PLAIN:
        where = "anywhere in the photo"
    return [*sentences, f"They lie {where}; their outlines fade over {_number(config, 'feather')} to "
            f"{_number(config, 'softest')} pixels, inside the mask."]  # fmt: skip


def _gate(config: dict[str, Any]) -> list[str]:
    gate = _part(config, "gate")
    checks = gate.get("checks")
    names = (
        [name for name in checks if isinstance(name, str) and name in CHECKS]
        if isinstance(checks, list)
        else []
    )
    if not names:
        return ["The quality gate checked nothing."]
    stops = "; ".join(f"{CHECKS[name].stops} ({name})" for name in names)
    return [
        f"The quality gate stopped {stops}. At least {_number(gate, 'smallest_fill')} of each mark must show."
    ]


def _graph(prompt: dict[str, Any]) -> list[str]:
    """The inputs that were set by hand of the nodes that say how a pair is made."""
    sentences = []
    for node in prompt.values():
        name, inputs = _text(_as_dict(node), "class_type"), _as_dict(_as_dict(node).get("inputs"))
        values = [
            f"{key} {value}"
            for key, value in inputs.items()
            if isinstance(value, (str, int, float)) and value != "" and len(str(value)) < 120
        ]
        if name and values:
            sentences.append(f"{name.removeprefix('ADiff_')}: {', '.join(values)}.")
    return sentences


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    return _as_dict(values.get(key))


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _number(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
