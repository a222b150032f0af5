"""What graft uses of other packages without their promise: a new version that lacks it fails here,
by name."""

import json

import numpy as np
import pytest


def test_mlflow_lets_a_python_model_do_without_type_hints(recwarn):
    from mlflow.pyfunc import PythonModel

    class Quiet(PythonModel):
        _skip_type_hint_validation = True

        def predict(self, context, model_input, params=None):
            return model_input

    assert [str(w.message) for w in recwarn if "type hint" in str(w.message)] == []

    class Loud(PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    assert [w for w in recwarn if "type hint" in str(w.message).lower()]


def test_mlflow_links_a_logged_model_with_its_versions_by_this_tag():
    from mlflow.utils import mlflow_tags

    assert mlflow_tags.MLFLOW_MODEL_VERSIONS == "mlflow.modelVersions"


def test_tensorflow_freezes_variables():
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    variable = tf.Variable([2.0, 3.0])
    call = tf.function(lambda x: x * variable, input_signature=[tf.TensorSpec([2])])
    frozen = convert_variables_to_constants_v2(call.get_concrete_function())
    assert frozen.variables == ()
    np.testing.assert_array_equal(frozen(tf.constant([1.0, 1.0]))[0], [2.0, 3.0])


def test_tensorflow_packs_a_tflite_model_from_objects():
    from tensorflow.lite.python import schema_py_generated as schema

    for name, fields in {
        "ModelT": {"subgraphs", "buffers", "metadata", "signatureDefs"},
        "SignatureDefT": {"inputs", "outputs", "signatureKey", "subgraphIndex"},
        "TensorMapT": {"name", "tensorIndex"},
        "MetadataT": {"name", "buffer"},
        "BufferT": {"data"},
    }.items():
        assert fields <= set(vars(getattr(schema, name)())), name
    assert callable(schema.ModelT.Pack) and callable(schema.ModelT.InitFromObj)


def test_tensorflow_has_the_saved_models_message():
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel().meta_graphs.add().graph_def
    assert hasattr(graph.library, "function") and hasattr(graph.library, "gradient")


@pytest.mark.parametrize("name", ["set_floatx", "set_image_data_format", "set_epsilon", "backend"])
def test_keras_lets_its_defaults_be_set(name):
    import keras

    assert callable(getattr(keras.config, name))


def test_shared_objects_of_a_keras_archive_are_numbered_by_address(residual_model, tmp_path):
    """What `graft.serving.writers.write_keras` renumbers; if Keras stops, the renumbering can
    go."""
    import zipfile

    residual_model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert "date_saved" in json.loads(archive.read("metadata.json"))
