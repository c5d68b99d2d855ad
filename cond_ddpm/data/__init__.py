"""Any labelled image data set -> uint8 arrays, decoded once -> batches.

load.py        `load_images`: the whole way, from the name of a data set to `LabelledImages`
source.py      a local path or a Hub id -> a table of pictures and labels
folders.py     folders of classes: which pictures, splits and classes they hold
columns.py     which columns of a table hold the pictures and the labels; labels -> class ids and names
pictures.py    one picture of any size and mode -> one array
cache.py       all pictures of a table -> one array, decoded the first time only
images.py      `LabelledImages`, its fingerprint, and the images held out for validation
batches.py     the order of an epoch, and the batches that the network sees
augmentation.py  changes of training images, of which the network is told
survey.py      what the pictures of a split are: sizes, modes, hashes, and which cannot be read
duplicates.py  which pictures are the same, or nearly
choices.py     resolution, fit and mirroring, chosen by the pictures
report.py      what was found and chosen, in words: `prepare`, `report`
neighbours.py  which images are nearest to a given one

Its files may import `config, files, fingerprints, text` and each other. Next in the data flow: `diffusion.py` adds noise to a
batch.
"""

from cond_ddpm.data.batches import Batch, balanced_order, epoch_order, make_batch
from cond_ddpm.data.folders import CLASSES_FILE, local_files
from cond_ddpm.data.images import LabelledImages, data_fingerprint, hold_out, joined
from cond_ddpm.data.load import is_local, load_images, public_name
from cond_ddpm.data.neighbours import nearest_images
from cond_ddpm.data.report import Prepared, Report, compare, prepare, report
from cond_ddpm.data.source import MNIST5K, NoSuchSplit

__all__ = [
    "CLASSES_FILE",
    "MNIST5K",
    "Batch",
    "LabelledImages",
    "NoSuchSplit",
    "Prepared",
    "Report",
    "balanced_order",
    "compare",
    "data_fingerprint",
    "epoch_order",
    "hold_out",
    "is_local",
    "joined",
    "load_images",
    "local_files",
    "make_batch",
    "nearest_images",
    "prepare",
    "public_name",
    "report",
]
