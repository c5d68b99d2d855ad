"""Pictures of diffusion at work: arrays, pipelines and rows of metrics in, image files out.

drawing.py     what all pictures share: fonts for any text, figures of any size
grids.py       `class_grid`, a labelled row of images for each class; most other pictures are such grids
strips.py      noising and denoising, step by step
sheet.py       the contact sheet of a data set
sweeps.py      the same noise under different guidance scales, numbers of steps, or moments of training
batch.py       a batch of training, without and with its noise
evaluation.py  nearest training images, and which classes a classifier confuses
curves.py      losses of a run by epoch and by step, and the quality of several models against their costs
report.py      a run's pictures and numbers on one page, report.html

Its files may import `data, ema, files, sampling, text`, the pipeline and each other. Nothing follows in the data flow.
"""

from cond_ddpm.visualize.batch import batch_picture
from cond_ddpm.visualize.curves import guidance_curve, loss_curve, quality_curves, read_metrics, training_curve
from cond_ddpm.visualize.evaluation import confusion_picture, nearest_neighbours
from cond_ddpm.visualize.grids import class_grid
from cond_ddpm.visualize.report import run_report
from cond_ddpm.visualize.sheet import contact_sheet
from cond_ddpm.visualize.strips import denoising_gif, denoising_strip, forward_strip
from cond_ddpm.visualize.sweeps import epochs_strip, guidance_sweep, steps_sweep

__all__ = [
    "batch_picture",
    "class_grid",
    "confusion_picture",
    "contact_sheet",
    "denoising_gif",
    "denoising_strip",
    "epochs_strip",
    "forward_strip",
    "guidance_curve",
    "guidance_sweep",
    "loss_curve",
    "nearest_neighbours",
    "quality_curves",
    "read_metrics",
    "run_report",
    "steps_sweep",
    "training_curve",
]
