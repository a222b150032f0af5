"""Figures in scikit-learn's Display style: an object holds the data, `.plot(*, ax=None)` draws it
and returns the object."""
