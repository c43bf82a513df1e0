"""Data sets and functions to learn, as tensors.

Importing this package costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.data.cache import fetch as fetch
    from nablab.data.functions.expressions import parse_expression as parse_expression
    from nablab.data.functions.targets import TARGETS as TARGETS
    from nablab.data.functions.targets import Target as Target
    from nablab.data.functions.targets import sawtooth_depth as sawtooth_depth
    from nablab.data.functions.targets import target as target
    from nablab.data.identity import source_hash as source_hash
    from nablab.data.images.image_set import Augment as Augment
    from nablab.data.images.image_set import ImageSet as ImageSet
    from nablab.data.images.image_set import Normalize as Normalize
    from nablab.data.images.labels import Corrupted as Corrupted
    from nablab.data.images.labels import by_truth as by_truth
    from nablab.data.images.labels import corrupt as corrupt
    from nablab.data.images.resizing import Resize as Resize
    from nablab.data.images.whitening import Whiten as Whiten
    from nablab.data.images.whitening import center_crop as center_crop
    from nablab.data.loading import load as load
    from nablab.data.loading import load_texts as load_texts
    from nablab.data.names import check_image_set as check_image_set
    from nablab.data.names import check_text_set as check_text_set
    from nablab.data.names import check_vectors as check_vectors
    from nablab.data.names import image_set_names as image_set_names
    from nablab.data.names import is_image_set as is_image_set
    from nablab.data.names import text_set_names as text_set_names
    from nablab.data.names import vector_set_names as vector_set_names
    from nablab.data.names import weight_set_names as weight_set_names
    from nablab.data.tasks import Task as Task
    from nablab.data.tasks import check_batches as check_batches
    from nablab.data.tasks import check_color as check_color
    from nablab.data.tasks import data_set_of as data_set_of
    from nablab.data.tasks import evenly_spaced as evenly_spaced
    from nablab.data.tasks import image_sets as image_sets
    from nablab.data.tasks import image_task as image_task
    from nablab.data.tasks import task as task
    from nablab.data.text.bags import count_terms as count_terms
    from nablab.data.text.bags import multi_hot as multi_hot
    from nablab.data.text.bags import tf_idf as tf_idf
    from nablab.data.text.corpus import Corpus as Corpus
    from nablab.data.text.corpus import corpus as corpus
    from nablab.data.text.duplicates import Duplicates as Duplicates
    from nablab.data.text.duplicates import find_duplicates as find_duplicates
    from nablab.data.text.questions import AnalogySet as AnalogySet
    from nablab.data.text.questions import analogy_set_names as analogy_set_names
    from nablab.data.text.questions import load_analogies as load_analogies
    from nablab.data.text.tasks import TextTask as TextTask
    from nablab.data.text.tasks import text_task as text_task
    from nablab.data.text.text_set import TextSet as TextSet
    from nablab.data.text.vectors import WordVectors as WordVectors
    from nablab.data.text.vocabulary import Encoded as Encoded
    from nablab.data.text.vocabulary import Vocabulary as Vocabulary
    from nablab.data.text.words import tokenize as tokenize
    from nablab.data.vector_loading import load_vectors as load_vectors
    from nablab.data.weight_loading import Pretrained as Pretrained
    from nablab.data.weight_loading import load_pretrained as load_pretrained

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "functions.targets": "TARGETS Target sawtooth_depth target",
        "cache": "fetch",
        "functions.expressions": "parse_expression",
        "identity": "source_hash",
        "images.image_set": "Augment ImageSet Normalize",
        "names": "check_image_set check_text_set check_vectors image_set_names "
        "is_image_set text_set_names vector_set_names weight_set_names",
        "images.labels": "Corrupted by_truth corrupt",
        "loading": "load load_texts",
        "tasks": "Task check_batches check_color data_set_of evenly_spaced image_sets "
        "image_task task",
        "text.corpus": "Corpus corpus",
        "text.bags": "count_terms multi_hot tf_idf",
        "text.duplicates": "Duplicates find_duplicates",
        "text.questions": "AnalogySet analogy_set_names load_analogies",
        "text.tasks": "TextTask text_task",
        "text.text_set": "TextSet",
        "text.vectors": "WordVectors",
        "text.vocabulary": "Encoded Vocabulary",
        "text.words": "tokenize",
        "vector_loading": "load_vectors",
        "weight_loading": "Pretrained load_pretrained",
        "images.resizing": "Resize",
        "images.whitening": "Whiten center_crop",
    },
)

__all__ = [
    "TARGETS",
    "AnalogySet",
    "Augment",
    "Corpus",
    "Corrupted",
    "Duplicates",
    "Encoded",
    "ImageSet",
    "Normalize",
    "Pretrained",
    "Resize",
    "Target",
    "Task",
    "TextSet",
    "TextTask",
    "Vocabulary",
    "Whiten",
    "WordVectors",
    "analogy_set_names",
    "by_truth",
    "center_crop",
    "check_batches",
    "check_image_set",
    "check_text_set",
    "check_vectors",
    "corpus",
    "corrupt",
    "count_terms",
    "data_set_of",
    "evenly_spaced",
    "fetch",
    "find_duplicates",
    "image_set_names",
    "image_sets",
    "image_task",
    "is_image_set",
    "load",
    "load_analogies",
    "load_pretrained",
    "load_texts",
    "load_vectors",
    "multi_hot",
    "parse_expression",
    "sawtooth_depth",
    "source_hash",
    "target",
    "task",
    "text_set_names",
    "text_task",
    "tf_idf",
    "tokenize",
    "vector_set_names",
    "weight_set_names",
]
