"""A pipeline folder as the world gets it: completed by card and pictures, checked, uploaded as one commit.

folder.py   the folder, read
card.py     `complete`: the grid of samples and the model card
checks.py   `check`: what keeps a folder from being published
upload.py   `publish`: one commit on the Hub, and a demo Space
"""

from cond_ddpm.hub.card import MARKER, complete, model_card
from cond_ddpm.hub.checks import check
from cond_ddpm.hub.upload import check_access, check_name, publish

__all__ = ["MARKER", "check", "check_access", "check_name", "complete", "model_card", "publish"]
