"""Data sets: a record on disk (or drawn on the fly) becomes a sample, samples become a batch.

`lavis.datasets.builders` has the façade (`load_dataset`, `dataset_zoo`); every other module of this
room that registers a name is one data set, and its docstring is that data set's card.
"""
