"""What was measured, in sentences that the model card and the printed summary share.

May import: nothing of ours. Next in the data flow: `card.py` and `evaluation/report.py` show them.
"""

from typing import Any


def judge_text(extractor: dict[str, Any]) -> str:
    """How well the less accurate of the classifiers recognises real images; "" for other features."""
    accuracy = extractor.get("held_out_accuracy")
    if accuracy is None:
        return ""
    text = f"{accuracy:.1%} accuracy on unseen real images"
    judges = extractor.get("judges", {}).values()
    judge: dict[str, Any] = min(judges, key=lambda one: one["held_out_accuracy"], default={})
    if "held_out_accuracy_interval" in judge:  # earlier versions did not record it
        low, high = judge["held_out_accuracy_interval"]
        text += f" ({low:.1%} to {high:.1%} with 95% confidence, by {judge['tested_images']:,} of them)"
    return text


def most_of(quantile: float, count: int) -> str:
    """All but a share of so many images, or any of them if that share is less than one image."""
    return f"any of {count:,}" if count * quantile < 1 else f"{1 - quantile:.0%} of {count:,}"


def usefulness_text(usefulness: dict[str, Any]) -> str:
    """How well classifiers that were trained on samples, on real images and on both recognise real images, in a sentence."""
    parts = {"samples": "samples", "real": "as many real images", "both": "both"}
    shares = [
        f"{usefulness['accuracy'][name]:.1%} (+- {usefulness['accuracy_std'][name]:.1%}) if trained on {words}"
        for name, words in parts.items()
    ]
    return (
        f"A small classifier names the class of {', of '.join(shares[:2])}, and of {shares[2]}, among"
        f" {usefulness['num_held_out']:,} held-out real images ({usefulness['num_images']:,} images of each,"
        f" {usefulness['steps']} steps, {usefulness['seeds']} seeds)."
    )


def guidance_text(guidance: dict[str, Any]) -> str:
    """How the default guidance scale was chosen, in sentences."""
    judge, rows = guidance["judge"], guidance["scales"]
    low, high = judge["held_out_accuracy_interval"]
    tried = ", ".join(f"{row['guidance_scale']:g}" for row in rows)
    text = (
        f"guidance_scale {guidance['chosen']:g} was chosen after the training among {tried}: the kernel distance of"
        f" {rows[0]['num_images']:,} samples of each scale ({guidance['num_inference_steps']} steps, seeds from"
        f" {guidance['first_seed']:,}) to real images is least with it. The judge, a {judge['network']} classifier, names the"
        f" class of {judge['held_out_accuracy']:.0%} of {judge['tested_images']:,} real images that it was not trained on"
        f" ({low:.0%} to {high:.0%} with 95% confidence)."
    )
    if guidance["learned_in_training"]:
        text += f" The network itself has learned guidance {guidance['learned_in_training']:g}, to which 1 adds none."
    return text
