"""Architectures, nothing else.

Importing this package costs nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.models.autoencoders import autoencoder as autoencoder
    from nablab.models.autoencoders import (
        convolutional_autoencoder as convolutional_autoencoder,
    )
    from nablab.models.autoencoders import dense_autoencoder as dense_autoencoder
    from nablab.models.dense_network import Activation as Activation
    from nablab.models.dense_network import dense as dense
    from nablab.models.dense_network import parameter_count as parameter_count
    from nablab.models.dense_network import parse_widths as parse_widths
    from nablab.models.dense_network import sawtooth_network as sawtooth_network
    from nablab.models.dropout import with_dropout as with_dropout
    from nablab.models.efficientnet import EfficientNetLite0 as EfficientNetLite0
    from nablab.models.efficientnet import efficientnet_lite0 as efficientnet_lite0
    from nablab.models.factory import check_output as check_output
    from nablab.models.factory import load_factory as load_factory
    from nablab.models.factory import load_function as load_function
    from nablab.models.factory import source_hash as source_hash
    from nablab.models.factory import unseen as unseen
    from nablab.models.features import CachedFeatures as CachedFeatures
    from nablab.models.features import fold_batch_norms as fold_batch_norms
    from nablab.models.images import image_network as image_network
    from nablab.models.images import image_networks as image_networks
    from nablab.models.images import parameter_count_of as parameter_count_of
    from nablab.models.inside import activated as activated
    from nablab.models.inside import first_convolution as first_convolution
    from nablab.models.inside import outputs_inside as outputs_inside
    from nablab.models.networks import Form as Form
    from nablab.models.networks import Networks as Networks
    from nablab.models.random_features import RandomFeatures as RandomFeatures
    from nablab.models.random_features import minimum_norm as minimum_norm
    from nablab.models.resnet import ResNet as ResNet
    from nablab.models.resnet import resnet18 as resnet18
    from nablab.models.sequences import UNKNOWN as UNKNOWN
    from nablab.models.sequences import Recurrent as Recurrent
    from nablab.models.sequences import TextClassifier as TextClassifier
    from nablab.models.sequences import check_text_network as check_text_network
    from nablab.models.shaped import check_model as check_model
    from nablab.models.shaped import check_network as check_network
    from nablab.models.shaped import count_parameters as count_parameters
    from nablab.models.shaped import network as network
    from nablab.models.shaped import network_builder as network_builder
    from nablab.models.text_cnn import Convolutions as Convolutions
    from nablab.models.transformer import TransformerEncoder as TransformerEncoder
    from nablab.models.trunks import FineTuned as FineTuned
    from nablab.models.trunks import SmallTrunk as SmallTrunk
    from nablab.models.trunks import check_trunk as check_trunk
    from nablab.models.trunks import head_of as head_of
    from nablab.models.trunks import last_block_of as last_block_of
    from nablab.models.trunks import moved_statistics as moved_statistics
    from nablab.models.trunks import replace_head as replace_head
    from nablab.models.trunks import settle_statistics as settle_statistics
    from nablab.models.variational import LinearVae as LinearVae
    from nablab.models.variational import (
        VariationalAutoencoder as VariationalAutoencoder,
    )
    from nablab.models.variational import code_size as code_size
    from nablab.models.variational import dense_vae as dense_vae
    from nablab.models.whitened import FastConvolutional as FastConvolutional
    from nablab.models.whitened import whitening_filters as whitening_filters

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "autoencoders": "autoencoder convolutional_autoencoder dense_autoencoder",
        "dense_network": "Activation dense parameter_count parse_widths "
        "sawtooth_network",
        "dropout": "with_dropout",
        "factory": "check_output load_factory load_function source_hash unseen",
        "efficientnet": "EfficientNetLite0 efficientnet_lite0",
        "features": "CachedFeatures fold_batch_norms",
        "images": "image_network image_networks parameter_count_of",
        "inside": "activated first_convolution outputs_inside",
        "networks": "Form Networks",
        "random_features": "RandomFeatures minimum_norm",
        "resnet": "ResNet resnet18",
        "sequences": "UNKNOWN Recurrent TextClassifier check_text_network",
        "shaped": "check_model check_network count_parameters network network_builder",
        "text_cnn": "Convolutions",
        "transformer": "TransformerEncoder",
        "trunks": "FineTuned SmallTrunk check_trunk head_of last_block_of "
        "moved_statistics replace_head settle_statistics",
        "whitened": "FastConvolutional whitening_filters",
        "variational": "LinearVae VariationalAutoencoder code_size dense_vae",
    },
)

__all__ = [
    "UNKNOWN",
    "Activation",
    "CachedFeatures",
    "Convolutions",
    "EfficientNetLite0",
    "FastConvolutional",
    "FineTuned",
    "Form",
    "LinearVae",
    "Networks",
    "RandomFeatures",
    "Recurrent",
    "ResNet",
    "SmallTrunk",
    "TextClassifier",
    "TransformerEncoder",
    "VariationalAutoencoder",
    "activated",
    "autoencoder",
    "check_model",
    "check_network",
    "check_output",
    "check_text_network",
    "check_trunk",
    "code_size",
    "convolutional_autoencoder",
    "count_parameters",
    "dense",
    "dense_autoencoder",
    "dense_vae",
    "efficientnet_lite0",
    "first_convolution",
    "fold_batch_norms",
    "head_of",
    "image_network",
    "image_networks",
    "last_block_of",
    "load_factory",
    "load_function",
    "minimum_norm",
    "moved_statistics",
    "network",
    "network_builder",
    "outputs_inside",
    "parameter_count",
    "parameter_count_of",
    "parse_widths",
    "replace_head",
    "resnet18",
    "sawtooth_network",
    "settle_statistics",
    "source_hash",
    "unseen",
    "whitening_filters",
    "with_dropout",
]
