"""The course recipe: transfer learning with MobileNetV2 as its exercise has it: training, and a
test at the end, nothing else.

Five epochs with the backbone frozen, Adam at 0.001; then the layers from the 120th up are unfrozen
and trained for five more at a tenth of that. Flip and rotation are drawn anew in every epoch, so
every photo goes through the whole network every time. BatchNorm is left alone, as the recipe does:
`training=False` is meant to keep it still, and in Keras 3 does not.

Early stopping, class weights, tracking, reports and export are not in the recipe, and not in its
time.
"""

if __name__ == "__main__":  # run as `python -m benchmarks.peers.course` or by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.peers import common

LEARNING_RATE = 0.001
FINE_TUNE_AT = 120
EPOCHS = [5, 5]


def train(
    photos,
    weights,
    *,
    alpha=1.0,
    image_size=160,
    epochs=EPOCHS,
    seed=42,
    freeze_batchnorm=False,
    out=None,
):
    """photos: folder with train/, val/ and test/. Returns what `common.finish` does."""
    import keras

    keras.utils.set_random_seed(seed)
    train_set, val_set, test_set = (
        common.photos(photos, split, image_size, seed) for split in ("train", "val", "test")
    )

    augmentation = keras.Sequential(
        [keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.2)]
    )
    base = common.backbone(image_size, alpha, weights)
    base.trainable = False
    inputs = keras.Input((image_size, image_size, 3))
    x = augmentation(inputs)
    x = keras.applications.mobilenet_v2.preprocess_input(x)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(len(train_set.class_names))(x))

    def fit(lr, first, last):
        model.compile(
            optimizer=keras.optimizers.Adam(lr),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(train_set, validation_data=val_set, initial_epoch=first, epochs=last, verbose=2)

    head_epochs, tune_epochs = epochs
    fit(LEARNING_RATE, 0, head_epochs)

    base.trainable = True
    for layer in base.layers[:FINE_TUNE_AT]:
        layer.trainable = False
    if freeze_batchnorm:
        for layer in base.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    fit(LEARNING_RATE / 10, head_epochs, head_epochs + tune_epochs)
    return common.finish(model, train_set, test_set, epochs, out)


def main(*, freeze_batchnorm=False, doc=__doc__):
    args = common.arguments(doc, epochs=EPOCHS)
    train(freeze_batchnorm=freeze_batchnorm, **vars(args))


if __name__ == "__main__":
    main()
