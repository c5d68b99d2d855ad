import numpy as np
from PIL import Image

from cond_ddpm.visualize import class_grid, loss_curve


def test_class_grid_shows_each_image_in_its_place(tmp_path):
    """Six images of one grey value each, in two rows: the values appear in reading order."""
    values = np.array([30, 70, 110, 150, 190, 230], np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (6, 1, 32, 32))
    class_grid(images, ["cat", "dog"], tmp_path / "grid.png", "title")
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    places = {value: np.argwhere(picture == value).mean(axis=0) for value in values if (picture == value).sum() > 1000}
    assert list(places) == values.tolist()
    rows, columns = np.array(list(places.values())).T.reshape(2, 2, 3)
    assert np.ptp(rows, axis=1).max() < 2 and np.ptp(columns, axis=0).max() < 2
    assert (np.diff(rows, axis=0) > 50).all() and (np.diff(columns, axis=1) > 50).all()


def test_loss_curve_of_one_epoch_and_of_many(tmp_path):
    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch} for epoch in range(1, 60)]
    for count in (1, 59):
        loss_curve(rows[:count], tmp_path / "loss.png")
        assert np.asarray(Image.open(tmp_path / "loss.png").convert("L")).std() > 5
