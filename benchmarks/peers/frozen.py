"""The course recipe by someone who knows about BatchNorm, and who trains for as many epochs as
graft did.

The same script but for two things: after the unfreezing every BatchNorm layer is set back to
`trainable = False`, and the epochs of both phases are given (`--epochs HEAD FINE_TUNE`).
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.peers import course

if __name__ == "__main__":
    course.main(freeze_batchnorm=True, doc=__doc__)
