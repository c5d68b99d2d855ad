"""Publishing a pipeline folder: the model card and pictures are added, it is checked, and uploaded as one commit.

folder.py   reading the folder
card.py     `complete`: the grid of samples and the model card
measured.py what was measured, in sentences
checks.py   `check`: problems that prevent a folder from being published
upload.py   `publish`: one commit on the Hub, and a demo Space
"""

from cond_ddpm.hub.card import MARKER, complete, model_card
from cond_ddpm.hub.checks import check
from cond_ddpm.hub.upload import check_access, check_name, publish

__all__ = ["MARKER", "check", "check_access", "check_name", "complete", "model_card", "publish"]
