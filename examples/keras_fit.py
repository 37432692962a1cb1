"""Trains a small Keras model on images in a folder, with validation, the cost of loading in the logs, and checkpoints.

    python examples/keras_fit.py [FOLDER WITH ONE FOLDER FOR EACH CLASS [FOLDER OF THE RUN]]

Without a folder, it writes scikit-learn's 1,797 handwritten digits into a temporary one. If you kill it within an epoch and
start it again with the same folders, it continues with the images that it has not yet trained on in this epoch.
"""

import sys
import tempfile
from pathlib import Path

import keras
from PIL import Image
from sklearn.datasets import load_digits

import ringload
import ringload.keras


def write_digits(root: Path) -> Path:
    """Write one PNG file for each image, in one folder for each class."""
    digits = load_digits()
    for number, (pixels, kind) in enumerate(zip(digits.images, digits.target, strict=True)):
        (root / str(kind)).mkdir(exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(root / str(kind) / f"{number}.png")
    return root


def main(images: Path, run: Path) -> None:
    train, held = ringload.ImageFolder(images, size=(32, 32)).split(0.2, seed=0)
    model = keras.Sequential([
        keras.layers.Input((32, 32, 3)),
        keras.layers.Rescaling(1 / 127.5, -1),  # the ring holds uint8, a quarter of the bytes of float32
        keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(len(train.class_names)),
    ])  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    with (
        ringload.Loader(train, 32, seed=0, last="keep") as loader,
        ringload.Loader(held, 32, shuffle=False, last="pad") as held_loader,
    ):
        data = ringload.keras.dataset(loader)
        checkpoint = ringload.keras.Checkpoint(run, data, every=20)
        first = checkpoint.restore(model)
        callbacks = [
            ringload.keras.Report(loader),
            checkpoint,
            keras.callbacks.CSVLogger(run.parent / "log.csv", append=first > 0),
        ]
        held_data = ringload.keras.dataset(held_loader)
        model.fit(data, validation_data=held_data, epochs=4, initial_epoch=first, callbacks=callbacks, verbose=2)
        print(loader.stats)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        images = Path(sys.argv[1]) if len(sys.argv) > 1 else write_digits(Path(folder))
        main(images, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder, "run"))
