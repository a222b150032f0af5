"""The CIFAR-10 recipe: a frozen MobileNetV2 on photos at their native 32 px; dense 128, dropout
0.3, softmax; five epochs.

At 32 px the backbone's last feature map is one single pixel: most of what it knows is lost before
the head sees it.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.peers import common

SIZE = 32
EPOCHS = [5]


def train(photos, weights, *, alpha=1.0, image_size=SIZE, epochs=EPOCHS, seed=42, out=None):
    """photos: folder with train/, val/ and test/. Returns what `common.finish` does."""
    import keras

    keras.utils.set_random_seed(seed)
    train_set, val_set, test_set = (
        common.photos(photos, split, image_size, seed) for split in ("train", "val", "test")
    )

    base = common.backbone(image_size, alpha, weights)
    base.trainable = False
    inputs = keras.Input((image_size, image_size, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(inputs)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(128, activation="relu")(x)
    x = keras.layers.Dropout(0.3)(x)
    model = keras.Model(
        inputs, keras.layers.Dense(len(train_set.class_names), activation="softmax")(x)
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train_set, validation_data=val_set, epochs=epochs[0], verbose=2)
    return common.finish(model, train_set, test_set, epochs, out)


if __name__ == "__main__":
    train(**vars(common.arguments(__doc__, epochs=EPOCHS, image_size=SIZE)))
