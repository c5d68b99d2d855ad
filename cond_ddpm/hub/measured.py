"""What was measured, in sentences that the model card and the printed summary share.

May import: nothing of ours. Next in the data flow: `card.py` and `evaluate/report.py` show them.
"""

from typing import Any


def judge_text(extractor: dict[str, Any]) -> str:
    """How well the less accurate of the classifiers recognises real images; "" for other features."""
    accuracy = extractor.get("held_out_accuracy")
    if accuracy is None:
        return ""
    text = f"{accuracy:.1%} accuracy on unseen real images"
    judge = min(extractor.get("judges", {}).values(), key=lambda one: one["held_out_accuracy"], default={})
    if "held_out_accuracy_interval" in judge:  # earlier versions did not record it
        low, high = judge["held_out_accuracy_interval"]
        text += f" ({low:.1%} to {high:.1%} with 95% confidence, by {judge['tested_images']:,} of them)"
    return text


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
