"""What the recipes share: the photos they are given, and the few facts that they leave behind."""

import argparse
import json
from pathlib import Path

BATCH = 32


def arguments(doc, *, epochs, image_size=160):
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "photos",
        type=Path,
        help="folder with train/, val/ and test/, each with one sub-folder per class",
    )
    parser.add_argument("weights", help="weights of MobileNetV2 without its top, .h5")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=image_size)
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=epochs, help="of each phase of the training"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args()


def photos(folder, split, size, seed):
    """One split as the tutorials read it: tf.data that decodes and resizes on the fly, shuffled for
    training only."""
    import keras

    return keras.utils.image_dataset_from_directory(
        folder / split,
        image_size=(size, size),
        batch_size=BATCH,
        shuffle=split == "train",
        seed=seed,
        verbose=False,
    )


def backbone(size, alpha, weights):
    import keras

    return keras.applications.MobileNetV2(
        input_shape=(size, size, 3), alpha=alpha, include_top=False, weights=str(weights)
    )


def finish(model, train, test, epochs, out=None):
    """Measure `model` on the test photos. Returns, and writes as JSON, accuracy, epochs and which
    photos were used."""
    loss, accuracy = model.evaluate(test, verbose=0)
    result = {
        "accuracy": float(accuracy),
        "loss": float(loss),
        "epochs": list(epochs),
        # Names, not paths: the folder is made for the occasion.
        "train_files": sorted(Path(path).name for path in train.file_paths),
        "test_files": sorted(Path(path).name for path in test.file_paths),
    }
    print(f"test accuracy {accuracy:.4f} on {len(test.file_paths)} photos", flush=True)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
